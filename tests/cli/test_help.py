"""What --help says: examples that can be typed, exit codes, and texts that no markup ate."""

import re
import shlex

import pytest
import typer

from kdctool.cli import app, run
from kdctool.cli.help import EXAMPLES, EXIT_CODES

COMMAND = typer.main.get_command(app)


def leaf(words: list[str]):
    """The command that a command line names, and the words after it."""
    command = COMMAND
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def leaves(command=COMMAND, above: str = "") -> list[str]:
    names = [(f"{above}{name}", below) for name, below in command.commands.items()]
    return [n for name, below in names for n in (leaves(below, f"{name} ") if hasattr(below, "commands") else [name])]


def test_every_command_has_an_example() -> None:
    assert sorted(leaves()) == sorted(EXAMPLES)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_has_only_options_that_exist(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])
    assert words[0] == "kdctool"
    command, rest = leaf(words[1:])
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in rest if re.match(r"--?[a-z]", word)} <= known


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_help_ends_with_examples_and_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Examples:" in told
    assert "130 Ctrl-C." in told
    assert EXIT_CODES[:30] in told


def test_brackets_in_help_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["finetune", "--help"]) == 0
    assert "[finetune]" in capsys.readouterr().out
