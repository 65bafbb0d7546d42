"""A page as a test reads it: its elements, tables and embedded JSON, by the parser of the standard library."""

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "img", "br", "input", "path", "rect", "line", "circle", "polyline"}


@dataclass
class Page(HTMLParser):
    """`elements` holds (tag, attributes); `tables` the texts of cells by the table's id; `text` what people read."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag in VOID:
            return
        self._open.append((tag, found))
        if tag == "table":
            self._table = self.tables.setdefault(str(found["id"]), [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while tag in [one for one, _ in self._open] and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self._open]
        if "script" in tags:
            key = str(self._open[-1][1].get("id") or "code")
            self.scripts[key] = self.scripts.get(key, "") + data
        elif "style" not in tags:
            self.text += data
            is_head = "thead" in tags
            is_value = is_head or any(a.get("class") == "cell-text" for _, a in self._open)
            if is_value and {"td", "th"} & set(tags):
                self._table[-1][-1] += data.strip()

    @property
    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts["kdctool-results"])
        return found


def read(html: bytes) -> Page:
    page = Page()
    page.feed(html.decode("utf-8"))
    page.close()
    return page


def agrees(text: str, value: Any) -> bool:
    """Whether a cell says the value: words as they are, numbers to the digits that are written."""
    if value is None:
        return text in ("-", "unknown")
    if isinstance(value, str):
        return text == value.strip()
    number = float(re.sub(r"[,]", "", text)) if re.fullmatch(r"-?[\d.,]+(e[+-]?\d+)?", text) else None
    if number is None:
        return bool(re.fullmatch(r"[\d.]+ [KMGT]?B", text))  # A size, 1.5 KB.
    digits = len(text.partition(".")[2].split("e")[0])
    return abs(number - value) <= max(0.5001 * 10**-digits, 5.01e-4 * abs(value))
