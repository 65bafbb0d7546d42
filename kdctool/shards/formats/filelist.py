"""A list of files without a header, `name.mp4,label` per line: VGGSound's `test.csv` and its relatives."""

import re
from collections.abc import Iterator

from kdctool.shards.formats import LabelFile, LabelRow, first_rows, formats

_MEDIA = re.compile(r".*\.(mp4|mkv|webm|avi|mov|m4v|wav|flac|mp3|m4a|ogg|opus)", re.IGNORECASE)


@formats.register("filelist")
class FileList:
    example = 'glLQrEijrKg_000300.mp4,playing hammond organ\n-z7K3YRv4j4_000040.mp4,"waterfall burbling, splashing"\n'

    def recognises(self, text: str) -> bool:
        rows = first_rows(text)
        return bool(rows) and all(len(row) == 2 and _MEDIA.fullmatch(row[0]) and row[1] for row in rows)

    def rows(self, file: LabelFile) -> Iterator[LabelRow]:
        for line, cells in file.cells():
            if len(cells) != 2 or not cells[0].strip():
                raise file.fault(line, f"{len(cells)} columns instead of file, label", "quote labels with commas")
            yield LabelRow(cells[0], "name", (cells[1].strip(),) if cells[1].strip() else (), "", line)
