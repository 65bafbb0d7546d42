"""A signal is a wish to the loop, and to those around it when the loop had ended anyway."""

import signal

import pytest

from kdctool.train.stop import StopWish


class Outer(Exception):
    pass


def outer(number: int, _: object) -> None:
    raise Outer(number)


def told_in_a_loop(ends_with: Exception | None = None) -> None:
    with StopWish() as wish:
        signal.raise_signal(signal.SIGUSR1)
        assert wish.asked
        if ends_with:
            raise ends_with


@pytest.fixture
def listening() -> None:
    before = signal.signal(signal.SIGUSR1, outer)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_wish_that_comes_with_the_last_step_is_handed_on(listening: None) -> None:
    with pytest.raises(Outer):
        told_in_a_loop()


def test_a_wish_that_was_acted_on_is_not_told_twice(listening: None) -> None:
    with pytest.raises(ZeroDivisionError):
        told_in_a_loop(ZeroDivisionError())


def test_a_run_of_its_own_ends_as_done_when_ctrl_c_comes_with_the_last_step() -> None:
    with StopWish() as wish:
        signal.raise_signal(signal.SIGINT)
    assert wish.ctrl_c
