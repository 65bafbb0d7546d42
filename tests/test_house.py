"""The shape of the house: who imports whom, what files are called, what stays free of torch."""

import ast
import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdctool import recipe

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kdctool"
SOURCES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    {"errors"},
    {"files", "progress", "registry", "batch", "seeds", "dist"},
    {"places"},
    {"recipe"},
    {"data", "models", "masking", "media", "shards"},
    {"objectives", "tasks", "export", "report"},
    {"train"},
    {"stages"},
    {"cli"},
    {"__main__"},
)
"""From the ground up. A room imports rooms of lower floors and itself."""
ALSO_ALLOWED = {("data", f"kdctool.shards.{name}") for name in ("about", "index", "read")}
"""data reads by the index what shards writes: the format belongs to one of them."""
FORBIDDEN_NAMES = {"utils", "util", "misc", "common", "helpers", "helper", "base", "core", "manager"}
LONG, TOO_LONG = 300, 400
TORCH_FREE_ROOMS = {
    "errors",
    "files",
    "progress",
    "registry",
    "batch",
    "seeds",
    "places",
    "recipe",
    "media",
    "shards",
    "cli",
    "__main__",
}
TORCH_FREE_STAGES = ("extract", "shard", "verify", "runs", "recipe_new", "demo_clips", "cost", "describe", "estimate")
"""--help, extract, shard, verify, recipe and making demo clips: they run before anybody waits for torch."""


@dataclass(frozen=True)
class Import:
    """One import of a module of ours, or of something outside."""

    file: Path
    line: int
    target: str
    top_level: bool
    """Whether it runs when the file is imported."""

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file, in functions too; `from kdctool.a import b` is kdctool.a.b where that is a module."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    later = {id(node) for scope in ast.walk(tree) if _is_later(scope) for node in ast.walk(scope)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively; write the whole name"
            names = [_module(f"{node.module}.{alias.name}", str(node.module)) for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name, id(node) not in later)


def _is_later(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return True
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _module(longer: str, shorter: str) -> str:
    path = ROOT.joinpath(*longer.split("."))
    return longer if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() else shorter


def room(module: str) -> str:
    """`kdctool.media.binary` -> `media`; the empty string for the package itself."""
    return [*module.split("."), ""][1]


def room_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


OURS = [item for file in SOURCES for item in imports(file) if item.target.split(".")[0] == "kdctool"]


def test_every_room_has_a_floor():
    known = set().union(*FLOORS)
    strangers = sorted({room_of(file) for file in SOURCES} - known - {""})
    assert not strangers, f"give these a floor in tests/test_house.py: {strangers}"


def test_imports_go_down():
    faults = []
    for item in OURS:
        mine, theirs = room_of(item.file), room(item.target)
        if mine == theirs or not theirs or (mine, item.target) in ALSO_ALLOWED:
            continue
        if not mine:  # The package itself stays empty at import; what it offers, it imports when asked.
            if item.top_level:
                faults.append(f"{item} imports {item.target}: `import kdctool` loads nothing")
        elif floor(theirs) >= floor(mine):
            faults.append(f"{item} imports {item.target}, a floor not below")
    assert not faults, "\n".join(faults)


def test_rooms_import_each_other_in_no_circle():
    edges: dict[str, dict[str, Import]] = {}
    for item in OURS:
        mine, theirs = room_of(item.file), room(item.target)
        if mine and theirs and mine != theirs:
            edges.setdefault(mine, {})[theirs] = item

    def circle(path: list[str]) -> list[str]:
        for target in edges.get(path[-1], {}):
            if target in path:
                return [*path[path.index(target) :], target]
            if found := circle([*path, target]):
                return found
        return []

    for start in edges:
        found = circle([start])
        places = [f"{edges[a][b]} ({a} -> {b})" for a, b in itertools.pairwise(found)]
        assert not found, "circle: " + ", ".join(places)


def test_no_file_has_a_name_that_says_nothing():
    faults = [
        str(file.relative_to(ROOT))
        for file in SOURCES
        if set(file.relative_to(ROOT).with_suffix("").parts) & FORBIDDEN_NAMES
    ]
    assert not faults, f"name these after what they hold: {faults}"


def test_no_file_is_dreaded():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES}
    if long := sorted(f"{name} ({lines})" for name, lines in lengths.items() if LONG < lines <= TOO_LONG):
        warnings.warn(f"over {LONG} lines, split them when you are there: {', '.join(long)}", stacklevel=1)
    too_long = {name: lines for name, lines in lengths.items() if lines > TOO_LONG}
    assert not too_long, f"over {TOO_LONG} lines: {too_long}"


def test_torch_free_rooms_import_no_torch():
    faults = []
    for file in SOURCES:
        free = room_of(file) in TORCH_FREE_ROOMS or (room_of(file) == "stages" and file.stem in TORCH_FREE_STAGES)
        for item in imports(file):
            if free and item.top_level and item.target.split(".")[0] in ("torch", "torchvision", "torchaudio", "timm"):
                faults.append(f"{item} imports {item.target} at the top")
    assert not faults, "\n".join(faults)


def test_only_the_command_line_prints_to_stdout():
    faults = []
    for file in SOURCES:
        if room_of(file) == "cli":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if is_print and not any(keyword.arg == "file" for keyword in node.keywords):
                faults.append(f"{file.relative_to(ROOT)}:{node.lineno} prints to stdout; use progress.say")
    assert not faults, "\n".join(faults)


def test_nothing_runs_a_shell_or_reads_a_pickle():
    faults = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (
                name in ("os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads")
                or given.get("shell") == "True"
            ):
                faults.append(f"{file.relative_to(ROOT)}:{node.lineno} calls {name}")
            if name == "torch.load" and given.get("weights_only") != "True":
                faults.append(f"{file.relative_to(ROOT)}:{node.lineno} calls torch.load without weights_only=True")
    assert not faults, "\n".join(faults)


def test_no_bare_except():
    faults = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not faults


PROBE = """
import importlib, json, sys
found, heavy = {}, {"torch", "torchvision", "torchaudio", "timm", "onnxruntime", "tensorboard"}
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = sorted(heavy & set(sys.modules))
print(json.dumps(found))
"""


def test_torch_free_modules_load_no_torch_when_they_run():
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in SOURCES
        if room_of(file) in TORCH_FREE_ROOMS - {"__main__"}
        or (room_of(file) == "stages" and file.stem in TORCH_FREE_STAGES)
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *modules], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    guilty = [name for name, heavy in json.loads(done.stdout).items() if heavy]
    assert not guilty, f"first to load one of torch, timm, onnxruntime, tensorboard: {guilty[0]}"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["recipe", "schema"], ["shard", "--help"]])
def test_commands_for_the_impatient_load_no_torch(arguments):
    code = "import sys; from kdctool.cli import run; code = run(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr or f"kdctool {' '.join(arguments)} loaded torch"
    assert done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_validates(path):
    assert recipe.load(path).name == path.stem


def test_the_changelog_has_an_unreleased_section():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text.splitlines()


def test_constraints_are_exact_and_name_no_host():
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert all(line.count("==") == 1 for line in lines), "exact versions only"
    assert not any("://" in line or "--" in line for line in lines), "no hosts, no options"
