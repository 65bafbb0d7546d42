"""Holding out: how many clips, and whole source videos only."""

from hypothesis import given
from hypothesis import strategies as st

from kdctool.shards.plan import PlannedClip, Settings, assign_splits, held_out


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


def test_copies_of_a_file_are_held_out_together() -> None:
    def clip(name: str, content: str) -> PlannedClip:
        return PlannedClip(name, name, name, 0.0, 1.0, 0, 1, (), "", content)

    pairs = [clip(f"{copy}-{place}", f"content {place}") for place in range(60) for copy in "ab"]
    assign_splits(pairs, Settings())
    splits = {c.uid: c.split for c in pairs}
    assert set(splits.values()) == {"train", "test"}
    assert all(splits[f"a-{place}"] == splits[f"b-{place}"] for place in range(60))


def test_files_without_copies_are_held_out_as_if_nothing_was_known_of_their_bytes() -> None:
    def splits(content: str) -> list[str]:
        clips = [PlannedClip(f"{n}", f"{n}", f"{n}", 0.0, 1.0, 0, 1, (), "", content and f"{n}") for n in range(90)]
        assign_splits(clips, Settings())
        return [clip.split for clip in clips]

    assert splits("known") == splits("")
