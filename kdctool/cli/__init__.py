"""The command line: parse, call one function of stages/, print. Nothing here imports torch."""

import importlib
import os
import sys
import traceback
from typing import Annotated

import typer
from typer.exceptions import TyperException

from kdctool import __version__
from kdctool.cli.help import complete
from kdctool.errors import KdctoolError

COMMANDS = (
    "demo",
    "extract",
    "shard",
    "data",
    "recipe",
    "import_weights",
    "pretrain",
    "replay",
    "finetune",
    "launch",
    "sweep",
    "runs",
    "evaluate",
    "report",
    "compare",
    "embed",
    "export",
    "doctor",
)
"""Modules of this folder in the order of `kdctool --help`; each has `register(app)`."""

app = typer.Typer(
    name="kdctool",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        print(f"kdctool {__version__}")
        raise typer.Exit


@app.callback(epilog="Every command has --help. --quiet anywhere silences progress; results stay on stdout.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a folder of videos to a trained, measured, exported audio-visual model."""


for _name in COMMANDS:
    importlib.import_module(f"kdctool.cli.{_name}").register(app)
complete(app)


def main() -> None:
    """Run a command; every failure ends as one line of cause, one of next step, and its exit code."""
    # Before OpenMP loads: threads that spin while they wait make a busy machine several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    from kdctool.progress import be_quiet

    before, separator, after = _split(arguments)
    be_quiet("--quiet" in before)
    arguments = [argument for argument in before if argument != "--quiet"] + separator + after
    try:
        code = app(args=arguments, standalone_mode=False)
        return int(code) if isinstance(code, int) else 0
    except KdctoolError as error:
        return _report(error)
    except TyperException as error:
        from typer.rich_utils import rich_format_error

        rich_format_error(error)  # type: ignore[arg-type]
        if str(error).startswith("No such command") and "Did you mean" not in str(error):
            print("next:  kdctool --help lists the commands", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception:
        traceback.print_exc()
        print("error: this is a bug in kdctool; the lines above say where", file=sys.stderr)
        return 1


def _split(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    if "--" in arguments:
        place = arguments.index("--")
        return arguments[:place], ["--"], arguments[place + 1 :]
    return arguments, [], []


def _report(error: KdctoolError) -> int:
    print(f"error: {error.cause}", file=sys.stderr)
    if error.next_step:
        print(f"next:  {error.next_step}", file=sys.stderr)
    return error.exit_code
