"""Kinetics' `train.csv`: a header with `youtube_id,time_start,time_end,split` and, except in test lists, `label`."""

from collections.abc import Iterator

from kdctool.shards.formats import LabelFile, LabelRow, first_rows, formats

_NEEDED = ("youtube_id", "time_start", "time_end")


@formats.register("kinetics")
class Kinetics:
    example = (
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        'playing drums,---QUuC4vJs,84,94,validate,0\n"shouting, cheering",--3ouPhoy2A,20,30,validate,0\n'
    )

    def recognises(self, text: str) -> bool:
        rows = first_rows(text, count=1)
        return bool(rows) and set(_NEEDED) <= {cell.lower() for cell in rows[0]}

    def rows(self, file: LabelFile) -> Iterator[LabelRow]:
        lines = file.cells()
        header = [cell.strip().lower() for cell in next(lines, (1, []))[1]]
        missing = [name for name in _NEEDED if name not in header]
        if missing:
            raise file.fault(1, f"the first line lacks {', '.join(missing)}")
        for line, cells in lines:
            if len(cells) != len(header):
                raise file.fault(
                    line, f"{len(cells)} columns, the header has {len(header)}", "quote labels with commas"
                )
            row = dict(zip(header, cells, strict=True))
            label, video = row.get("label", "").strip(), row["youtube_id"].strip()
            if not video:
                raise file.fault(line, "no youtube_id")
            yield LabelRow(
                video,
                "video",
                (label,) if label else (),
                file.split(line, row.get("split", "")),
                line,
                file.seconds(line, row["time_start"]),
                file.seconds(line, row["time_end"]),
            )
