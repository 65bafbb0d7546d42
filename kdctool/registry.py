"""From a name in a recipe to a class, by one mechanism for objectives, maskings, tasks and exporters.

A registry belongs to a folder. It imports the files of that folder when it is first asked, so adding a
thing is adding a file: there is no list to edit.
"""

import difflib
import importlib
import pkgutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from kdctool.errors import UsageFault

C = TypeVar("C", bound=type)


class Section(BaseModel):
    """A table of a recipe: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


NOT_A_RESULT: dict[str, JsonValue] = {"result": False}
"""`json_schema_extra` of a key that moves no number, so the digest that guards a resume leaves it out."""

ONLY_WHERE_SET: dict[str, JsonValue] = {"result": "where set"}
"""`json_schema_extra` of a section that most recipes do not have: in the digest where it differs from its default."""


@dataclass(frozen=True)
class Entry:
    """A registered class and the section that validates its `options` table."""

    name: str
    cls: Any
    options: type[Section]


class Registry:
    """Name -> class for the files of one package folder."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, Entry] = {}
        self._scanned = False

    def register(self, name: str, options: type[Section] = Section) -> Callable[[C], C]:
        """Class decorator: make the class known as `name`, its options validated by `options`."""

        def add(cls: C) -> C:
            known = self._entries.get(name)
            if known is not None and known.cls.__module__ != cls.__module__:
                raise UsageFault(f"two {self.kind}s are called '{name}': {known.cls.__module__} and {cls.__module__}")
            self._entries[name] = Entry(name, cls, options)
            return cls

        return add

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        self._scan()
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """The entry called `name`; UsageFault with a did-you-mean otherwise."""
        self._scan()
        if name not in self._entries:
            close = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(self.names())}"
            raise UsageFault(f"no {self.kind} is called '{name}'", hint)
        return self._entries[name]

    def options(self, name: str, given: dict[str, Any]) -> Any:
        """Validate an `options` table of a recipe for the thing called `name`."""
        try:
            return self.get(name).options.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            known = sorted(self.get(name).options.model_fields)
            close = difflib.get_close_matches(key, known, n=1)
            there = f"its options are {', '.join(known)}" if known else "it has no options"
            if first["type"] == "extra_forbidden":
                hint = f"did you mean {close[0]}? {there}" if close else there
                raise UsageFault(f"{self.kind} '{name}', option {key}: there is no such option", hint) from error
            said = first["msg"].replace("Input should be", "must be")
            raise UsageFault(f"{self.kind} '{name}', option {key}: {said}, got {first['input']!r}", there) from error

    def _scan(self) -> None:
        if self._scanned:
            return
        folder = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._scanned = True  # Last: a file that cannot be imported is an error every time, not a missing name.


def options_table(given: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` texts of a command line as an options table; values are TOML, bare words are strings."""
    found: dict[str, Any] = {}
    for text in given or []:
        name, equals, raw = text.partition("=")
        if not equals or not name.strip():
            raise UsageFault(f"--option {text}: expected name=value", "for example --option frames=5")
        try:
            found[name.strip()] = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = raw
    return found


def load_plugins(modules: tuple[str, ...]) -> None:
    """Import the modules a recipe names in `plugins`; they register themselves."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageFault(
                f"plugin '{module}' cannot be imported: {error}", "is its folder on PYTHONPATH?"
            ) from error
