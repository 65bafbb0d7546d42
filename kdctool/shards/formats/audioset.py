"""AudioSet's `*_segments.csv`: comment lines, then `YTID, start, end, "mid,mid"`. Labels are mids (`/m/09x0r`)."""

import re
from collections.abc import Iterator

from kdctool.shards.formats import LabelFile, LabelRow, first_rows, formats, is_number

_MID = re.compile(r"/[a-z]+/[\w-]+")


@formats.register("audioset")
class AudioSet:
    example = (
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2, num_segs=2, num_unique_labels=3\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"\n-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw"\n'
    )

    def recognises(self, text: str) -> bool:
        rows = first_rows(text, count=1)
        return bool(rows) and len(rows[0]) == 4 and all(map(is_number, rows[0][1:3])) and _all_mids(rows[0][3])

    def rows(self, file: LabelFile) -> Iterator[LabelRow]:
        for line, cells in file.cells(comments=True):
            if len(cells) != 4 or not cells[0].strip():
                raise file.fault(line, f"{len(cells)} columns instead of YTID, start, end, labels")
            start, end = file.seconds(line, cells[1]), file.seconds(line, cells[2])
            if not _all_mids(cells[3]):
                raise file.fault(line, f"{cells[3][:80]!a} is no list of mids such as /m/09x0r")
            mids = tuple(dict.fromkeys(_mids(cells[3])))
            yield LabelRow(cells[0].strip(), "video", mids, "", line, start, end)


def _mids(cell: str) -> list[str]:
    return [mid.strip() for mid in cell.split(",") if mid.strip()]


def _all_mids(cell: str) -> bool:
    return all(_MID.fullmatch(mid) for mid in _mids(cell)) and bool(_mids(cell))
