"""A plain CSV: a header with `path` or `uid`, `label` or `labels`, and `split` if wanted.

`label` holds one name, or several between `;` or `|` (a comma belongs to the name: "playing violin, fiddle").
`labels` holds several between `;`, `|` or commas. Semicolons or tabs may separate the columns.
"""

from collections.abc import Iterator

from kdctool.shards.formats import LabelFile, LabelRow, formats, split_cell

_COLUMNS = ("path", "uid", "label", "labels", "split")


@formats.register("plain")
class Plain:
    example = 'path,label,split\na/dog 1.mp4,"playing violin, fiddle",train\nb/dog 2.mp4,dog;cat,test\n'

    def recognises(self, text: str) -> bool:
        header = _header(text)
        return bool({"path", "uid"} & set(header)) and bool({"label", "labels", "split"} & set(header))

    def rows(self, file: LabelFile) -> Iterator[LabelRow]:
        lines = file.cells(_delimiter(file.text), spaces=True)
        header = [cell.strip().lower() for cell in next(lines, (1, []))[1]]
        columns = {name: header.index(name) for name in _COLUMNS if name in header}
        clip = columns.get("uid", columns.get("path"))
        if clip is None or not columns.keys() & {"label", "labels", "split"}:
            raise file.fault(1, "the first line needs path or uid, and label, labels or split")
        for line, cells in lines:
            if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
                raise file.fault(line, f"{len(cells)} columns, the header has {len(header)}", "quote cells with commas")
            if not cells[clip].strip():
                raise file.fault(line, f"no {header[clip]}", "name the clip, or delete the line")
            labels: list[str] = []
            for name in ("label", "labels"):
                if name in columns:
                    labels += split_cell(cells[columns[name]], file.known, commas=name == "labels")
            split = file.split(line, cells[columns["split"]]) if "split" in columns else ""
            found = tuple(dict.fromkeys(labels))
            if "uid" in columns:
                yield LabelRow(cells[clip].strip(), "uid", found, split, line)
            else:
                yield LabelRow(cells[clip], "path", found, split, line)


def _delimiter(text: str) -> str:
    return max(",;\t", key=text.split("\n", 1)[0].count)


def _header(text: str) -> list[str]:
    first = text.split("\n", 1)[0]
    return [cell.strip().strip('"').lower() for cell in first.split(_delimiter(text))]
