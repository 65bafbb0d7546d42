"""Names that others chose, as a page may show them: clips, labels and notes hold whatever a file name may hold."""

import unicodedata

LONGEST = 400
_DIRECTIONS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)}
"""Marks that turn the text around them; shown, so that no name can pretend to be another."""


def shown(text: object) -> str:
    """`text` with everything invisible written out: control characters, lone surrogates (bytes that are no UTF-8).

    Longer names lose their middle. Nothing is escaped for HTML here: the templates do that to every value.
    """
    written = "".join(_character(c) for c in str(text))
    if len(written) > LONGEST:
        return f"{written[: LONGEST - 100]} ... {written[-80:]}"
    return written


def _character(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # How Python keeps a byte that is no UTF-8.
        return f"\\x{ord(c) - 0xDC00:02x}"
    if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _DIRECTIONS:
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(c, f"\\u{ord(c):04x}")
    return c


def title(name: str) -> str:
    """`reconstruction_audio` -> 'Reconstruction audio', where the page knows no better name."""
    words = shown(name).replace("_", " ").strip()
    return words[:1].upper() + words[1:]
