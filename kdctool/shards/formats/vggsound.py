"""VGGSound's `vggsound.csv`: `YouTube id, start in seconds, label, train or test`, without a header."""

from collections.abc import Iterator

from kdctool.shards.formats import LabelFile, LabelRow, first_rows, formats, is_number

LENGTH_S = 10.0
_SPLITS = frozenset({"train", "test", "val", "valid", "validation"})


@formats.register("vggsound")
class VggSound:
    example = '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"waterfall burbling, splashing",train\n'

    def recognises(self, text: str) -> bool:
        rows = first_rows(text)
        return any(_is_row(row) for row in rows) and all(len(row) == 4 for row in rows)

    def rows(self, file: LabelFile) -> Iterator[LabelRow]:
        for number, (line, cells) in enumerate(file.cells()):
            if number == 0 and len(cells) == 4 and not is_number(cells[1]):
                continue  # copies of the file with a header are about
            if len(cells) != 4 or not cells[0].strip():
                raise file.fault(
                    line, f"{len(cells)} columns instead of id, start, label, split", "quote labels with commas"
                )
            start = file.seconds(line, cells[1])
            labels = (cells[2].strip(),) if cells[2].strip() else ()
            split = file.split(line, cells[3])
            yield LabelRow(cells[0].strip(), "video", labels, split, line, start, start + LENGTH_S)


def _is_row(row: list[str]) -> bool:
    return len(row) == 4 and is_number(row[1]) and not is_number(row[2]) and row[3] in _SPLITS
