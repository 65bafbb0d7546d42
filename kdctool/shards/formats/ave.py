"""AVE's `Annotations.txt` and `trainSet.txt`: `Category&VideoID&Quality&StartTime&EndTime`.

The times are those of the event inside a ten-second clip, not of the clip in its video: a row names the whole video.
"""

from collections.abc import Iterator

from kdctool.shards.formats import LabelFile, LabelRow, formats, is_number


@formats.register("ave")
class Ave:
    example = (
        "Category&VideoID&Quality&StartTime&EndTime\nChurch bell&RUhOCu3LNXM&good&0&10\n"
        "Male speech, man speaking&-3eh-2MMGm0&good&2&7\n"
    )

    def recognises(self, text: str) -> bool:
        lines = [line for line in text.splitlines() if line.strip()][:2]
        return bool(lines) and all(line.count("&") >= 4 for line in lines)

    def rows(self, file: LabelFile) -> Iterator[LabelRow]:
        for line, text in enumerate(file.text.splitlines(), start=1):
            if not text.strip():
                continue
            cells = [cell.strip() for cell in text.rsplit("&", 4)]
            if len(cells) == 5 and cells[1].lower() == "videoid":
                continue
            if len(cells) != 5 or not all(map(is_number, cells[3:])) or not cells[1]:
                raise file.fault(line, f"{text[:80]!a} is not Category&VideoID&Quality&Start&End")
            yield LabelRow(cells[1], "video", (cells[0],) if cells[0] else (), "", line)
