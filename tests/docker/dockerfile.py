"""Read a Dockerfile, and carry its steps out in a root file system where there is no docker engine.

    sudo python tests/docker/dockerfile.py docker/cpu.Dockerfile ROOTFS [--arg DEMO=1] [--env PIP_CERT=...]

ROOTFS stands for the base image: a Debian of the same release (debootstrap) with the same Python in /usr/local.
"""

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Step:
    """One instruction, continuation lines joined."""

    line: int
    name: str
    rest: str

    def words(self) -> list[str]:
        """Arguments of the exec form, or split at blanks; options left out."""
        if self.rest.startswith("["):
            return [str(word) for word in json.loads(self.rest)]
        return [word for word in self.rest.split() if not word.startswith("--")]


def parse(text: str) -> list[Step]:
    """The instructions of a Dockerfile."""
    steps, held, first = [], "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not held and (not line.strip() or line.lstrip().startswith("#")):
            continue
        first = first if held else number
        held += line.rstrip().removesuffix("\\") + ("\n" if line.rstrip().endswith("\\") else "")
        if not line.rstrip().endswith("\\"):
            name, _, rest = held.strip().partition(" ")
            steps.append(Step(first, name.upper(), rest.replace("\n", "").strip()))
            held = ""
    assert not held, f"line {first}: the last instruction does not end"
    return steps


def ignored(path: str, rules: list[str]) -> bool:
    """Whether .dockerignore keeps `path` (relative, posix) out of the build; the last rule that fits decides."""
    out = False
    for rule in rules:
        pattern = rule.removeprefix("!").strip("/")
        parts = PurePosixPath(path).parts
        ends = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if pattern.startswith("**/"):
            hit = any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
        else:
            hit = any(fnmatch.fnmatch(end, pattern) and end.count("/") == pattern.count("/") for end in ends)
        if hit:
            out = not rule.startswith("!")
    return out


def rules(root: Path = ROOT) -> list[str]:
    """The lines of .dockerignore that say something."""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


class Build:
    """State of a build: variables, folder and user."""

    def __init__(self, rootfs: Path, context: Path, args: dict[str, str], env: dict[str, str]) -> None:
        self.rootfs, self.context, self.given = rootfs, context, args
        self.env = {"PATH": BASE_PATH, "LANG": "C.UTF-8"}
        self.args = dict(env)
        self.folder, self.user = "/", "0:0"

    def do(self, step: Step) -> None:
        """Carry out one instruction; RUN stops the build when it fails."""
        if step.name == "ENV":
            for word in step.rest.split():
                key, _, value = word.partition("=")
                self.env[key] = value.replace("$PATH", self.env["PATH"])
        elif step.name == "ARG":
            key, has, value = step.rest.partition("=")
            if has or key in self.given:
                self.args[key] = self.given.get(key, value)
        elif step.name == "WORKDIR":
            self.folder = step.rest
            self._inside(self.folder).mkdir(parents=True, exist_ok=True)
        elif step.name == "USER":
            self.user = step.rest
        elif step.name == "COPY":
            *sources, target = step.words()
            for source in sources:
                self._copy(source, target)
        elif step.name == "RUN":
            variables = [f"{key}={value}" for key, value in {**self.args, **self.env}.items()]
            shell = ["/bin/sh", "-c", f'cd "{self.folder}" && {step.rest}']
            subprocess.run(
                ["chroot", f"--userspec={self.user}", str(self.rootfs), "/usr/bin/env", "-i", *variables, *shell],
                check=True,
            )

    def _inside(self, path: str) -> Path:
        return self.rootfs / PurePosixPath(self.folder).joinpath(path).as_posix().lstrip("/")

    def _copy(self, source: str, target: str) -> None:
        """A file into a folder, or the contents of a folder into one, as COPY does; links are kept."""
        start, place = self.context / source, self._inside(target)
        lines = rules(self.context)
        if not start.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(start, place / start.name)
            return
        for folder, folders, files in os.walk(start):
            below = Path(folder).relative_to(self.context)
            links = [name for name in folders if Path(folder, name).is_symlink()]
            folders[:] = [n for n in folders if n not in links and not ignored((below / n).as_posix(), lines)]
            there = place / Path(folder).relative_to(start)
            there.mkdir(parents=True, exist_ok=True)
            for name in [*files, *links]:
                if not ignored((below / name).as_posix(), lines):
                    (there / name).unlink(missing_ok=True)
                    shutil.copy2(Path(folder, name), there / name, follow_symlinks=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("rootfs", type=Path)
    parser.add_argument("--context", type=Path, default=ROOT)
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    args, env = (dict(item.split("=", 1) for item in items) for items in (given.arg, given.env))
    build = Build(given.rootfs, given.context, args, env)
    for step in parse(given.dockerfile.read_text(encoding="utf-8")):
        start = time.monotonic()
        print(f"--- line {step.line}: {step.name} {step.rest[:100]}", flush=True)
        build.do(step)
        print(f"    {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
