"""Holding out: how many clips, and whole source videos only."""

from hypothesis import given
from hypothesis import strategies as st

from kdctool.shards.plan import held_out


@given(st.lists(st.integers(1, 60), max_size=80))
def test_the_held_out_clips_are_never_more_than_half(sizes: list[int]) -> None:
    sources = {f"video-{place}": size for place, size in enumerate(sizes)}
    count = sum(sources[source] for source in held_out(sources))
    assert count <= min(1000, sum(sizes) // 2)


@given(st.integers(0, 20_000))
def test_single_clip_videos_are_held_out_to_the_tenth(total: int) -> None:
    count = len(held_out({f"video-{place}": 1 for place in range(total)}))
    assert count == min(max(round(total / 10), 20), 1000, total // 2)


def test_a_video_longer_than_half_of_the_data_stays_in_train() -> None:
    assert held_out({"long": 90, "short": 10}) == {"short"}
    assert held_out({"only": 50}) == set()


def test_more_videos_leave_those_held_out_before_where_they_were() -> None:
    few = held_out({f"video-{place}": 1 for place in range(400)})
    many = held_out({f"video-{place}": 1 for place in range(440)})
    assert len(few - many) <= 4
