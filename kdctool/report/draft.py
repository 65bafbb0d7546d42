"""A page while it is put together: the tables and the media that its sections asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdctool.report import tables
from kdctool.report.clips import Clip
from kdctool.report.media import Media
from kdctool.report.names import shown
from kdctool.report.tables import Cell, Table

ASKED, ANSWERS, ASKED_SOUND, OTHER_SOUND = 0, 10_000, 20_000, 30_000
"""Ranks of media: pictures before sounds, what is asked before what is answered; plus the place in its section."""


@dataclass(frozen=True)
class Tile:
    """A clip as it stands in the page; ids of media, empty where the clip has none."""

    uid: str
    name: str
    labels: tuple[str, ...]
    thumbnail: str
    spectrogram: str
    sound: str
    seconds: float
    problem: str


@dataclass(frozen=True)
class Part:
    """What a task shows beside its metrics: a template and what it is filled with; `payload` goes into the JSON."""

    template: str
    data: dict[str, Any]
    payload: dict[str, Any] = field(default_factory=dict)


@dataclass
class Draft:
    """Collects tables and media by id."""

    media: Media = field(default_factory=Media)
    tables: dict[str, Table] = field(default_factory=dict)

    def table(
        self, id: str, caption: str, columns: Sequence[str], rows: Iterable[Iterable[Cell]], sortable: bool = False
    ) -> Table:
        made = tables.make(id, caption, columns, rows, sortable)
        if id in self.tables:
            raise KeyError(f"two tables are called {id}")
        self.tables[id] = made
        return made

    def tile(self, clip: Clip, place: int, asked: bool = False) -> Tile:
        """Ask for the clip's picture, spectrogram and sound."""
        thumbnail = spectrogram = sound = ""
        pictures = (ASKED if asked else ANSWERS) + place
        if clip.frame is not None:
            thumbnail = self.media.add(f"frame {clip.uid}", "picture", pictures, clip.thumbnail)
        if clip.sound is not None:
            sounds = (ASKED_SOUND if asked else OTHER_SOUND) + place
            sound = self.media.add(f"sound {clip.uid}", "sound", sounds, clip.played)
            if len(clip.sound) >= clip.sample_rate // 40:
                spectrogram = self.media.add(f"spectrogram {clip.uid}", "picture", pictures, clip.spectrogram)
        return Tile(
            shown(clip.uid),
            shown(clip.name),
            tuple(shown(label) for label in clip.labels[:4]),
            thumbnail,
            spectrogram,
            sound,
            round(clip.seconds, 2),
            shown(clip.problem),
        )
