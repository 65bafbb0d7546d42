"""Signals as wishes: the loop finishes its step, saves, and ends with the code the signal stands for."""

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopWish:
    """Whether somebody asked the run to stop; a second Ctrl-C stops at once.

    A wish that comes while the last step ends is handed on to whoever listened before (a study of many runs).
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopWish":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._wish)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        outer = None if self.signal is None else self._before.get(self.signal)
        if kind is None and self.signal is not None and callable(outer) and outer is not signal.default_int_handler:
            signal.raise_signal(self.signal)

    def _wish(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def asked(self) -> bool:
        return self.signal is not None

    @property
    def ctrl_c(self) -> bool:
        return self.signal == signal.SIGINT
