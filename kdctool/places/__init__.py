"""Where things are read from and written to: a path of this machine, or a URL of an object store."""

import re
from pathlib import Path

from kdctool.errors import UsageFault
from kdctool.places.remote import PACKAGES, Missing, Refused, Remote, Unreachable, many

__all__ = ["Missing", "Place", "Refused", "Remote", "Unreachable", "is_url", "located", "many", "parse"]

Place = Path | Remote

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL | re.IGNORECASE)
_KNOWN = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, file:///FOLDER, or a path without ://"


def is_url(text: str) -> bool:
    """Whether a text is the URL of something in a store."""
    match = _URL.fullmatch(text)
    return match is not None and match[1].lower() in PACKAGES and not match[2].startswith("/")


def parse(text: "str | Place") -> Place:
    """A path, or the place of an s3:// or gs:// URL. file:// is a path. UsageFault for any other URL."""
    if not isinstance(text, str):
        return text
    match = _URL.fullmatch(text)
    if match is None:
        return Path(text)
    protocol, key = match[1].lower(), match[2]
    if protocol == "file" and key.startswith("/"):
        return Path(key)
    bucket = key.partition("/")[0]
    if protocol not in PACKAGES or not bucket:
        raise UsageFault(f"{text!a} is no place that kdctool knows", f"write {_KNOWN}")
    if set("*?[]\n") & set(key):
        raise UsageFault(f"{text!a}: a URL holds no *, ?, [, ] and no line break", "name the folder above")
    return Remote(protocol, key.rstrip("/"))


def located(url: str) -> Remote:
    """The place of the URL of an object, whatever characters its name has."""
    protocol, _, key = url.partition("://")
    return Remote(protocol.lower(), key)
