"""What a stage that ends in tables hands to the command line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A table with its title; every row has a text for each column."""

    title: str
    columns: list[str]
    rows: list[list[str]]
