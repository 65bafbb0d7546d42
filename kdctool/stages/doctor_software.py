"""The software half of `kdctool doctor`: Python, packages that fit each other, ffmpeg and its codecs."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdctool.errors import EnvironmentFault
from kdctool.media import binary
from kdctool.stages.demo_clips import candidates

Status = Literal["OK", "WARN", "FAIL"]

PACKAGES = (
    "numpy", "pydantic", "typer", "rich", "tomli-w", "av", "ffmpeg-python", "imageio-ffmpeg", "pillow", "soundfile",
    "webdataset", "timm", "safetensors", "tensorboard", "onnx", "onnxscript", "onnxruntime", "psutil",
)  # fmt: skip
REINSTALL = 'make demo or make test, or: pip install -c constraints.txt -e ".[dev]"'


@dataclass(frozen=True)
class Row:
    """One finding."""

    check: str
    status: Status
    found: str
    breaks: str = ""
    """What does not work because of it."""
    fix: str = ""


def python() -> Iterator[Row]:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info >= (3, 13):
        yield Row("python", "WARN", found, "nothing known, but 3.11 and 3.12 are tested", "make PYTHON=python3.12 test")
    else:
        yield Row("python", "OK", found)


def packages() -> Iterator[Row]:
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        yield Row("packages", "FAIL", f"missing: {', '.join(missing)}", "the commands that use them", REINSTALL)
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Row("versions", "OK", found)


def torch_itself() -> Iterator[Row]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Row("torch", "FAIL", f"cannot be imported: {first_line(error)}", "training, eval, export", REINSTALL)
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Row("torch", "OK", f"{torch.__version__}, built for {built}, {torch.get_num_threads()} threads")


def torch_family() -> Iterator[Row]:
    torch_version = _version("torch")
    for name, breaks in (("torchvision", "reading frames"), ("torchaudio", "the torchaudio filter bank and its tests")):
        version = _version(name)
        if not version:
            yield Row(name, "FAIL", "not installed", breaks, REINSTALL)
            continue
        if not fits(name, version, torch_version):
            yield Row(name, "FAIL", f"{version} was not built for torch {torch_version}", breaks, REINSTALL)
            continue
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            yield Row(name, "FAIL", f"{version} cannot be imported: {first_line(error)}", breaks, REINSTALL)
        else:
            yield Row(name, "OK", version)


def fits(name: str, version: str, torch_version: str) -> bool:
    """Whether a torchvision or torchaudio was built for this torch: 2.11 goes with 0.26 and 2.11."""
    ours, torchs = _numbers(version), _numbers(torch_version)
    return ours[:2] == ((0, torchs[1] + 15) if name == "torchvision" else torchs[:2])


def ffmpeg() -> Iterator[Row]:
    try:
        programs = candidates()
    except EnvironmentFault as fault:
        yield Row("ffmpeg", "FAIL", fault.cause, "extract, demo", fault.next_step)
        return
    program = programs[0]
    try:
        version = _output(program, "-version").splitlines()[0].removeprefix("ffmpeg version ").split(" Copyright")[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        found = f"{program} does not run: {first_line(error)}"
        yield Row("ffmpeg", "FAIL", found, "extract, demo", "apt install ffmpeg")
        return
    origin = "bundled with imageio-ffmpeg; none on PATH" if "imageio_ffmpeg" in Path(program).parts else "on PATH"
    origin = f"named by {binary.FORCE}" if os.environ.get(binary.FORCE) else origin
    yield Row("ffmpeg", "OK", f"{version} ({origin}: {program})")
    decoders, encoders = _names(_output(program, "-decoders")), _names(_output(program, "-encoders"))
    lacking = [name for name in ("h264", "hevc", "vp9", "mpeg4", "aac", "mp3", "opus", "flac") if name not in decoders]
    if lacking:
        fix = "apt install ffmpeg, or take that program off PATH so that the bundled one is used"
        bad: Status = "FAIL" if {"h264", "aac"} & set(lacking) else "WARN"
        yield Row("ffmpeg decoders", bad, f"missing: {', '.join(lacking)}", "extract, for files in these formats", fix)
    else:
        yield Row("ffmpeg decoders", "OK", "h264, hevc, vp9, mpeg4, aac, mp3, opus, flac")
    if {"libx264", "aac"} <= encoders:
        yield Row("ffmpeg encoders", "OK", "libx264, aac")
    else:
        fix = "nothing to do: demo takes the bundled ffmpeg" if len(programs) > 1 else "pip install imageio-ffmpeg"
        yield Row("ffmpeg encoders", "WARN", "no libx264 or no aac", "demo with this ffmpeg, which writes videos", fix)


def av_codecs() -> Iterator[Row]:
    try:
        import av
    except (ImportError, OSError) as error:
        yield Row("PyAV", "FAIL", f"cannot be imported: {first_line(error)}", "extract", REINSTALL)
        return
    lacking = sorted({"h264", "hevc", "vp9", "aac", "opus"} - set(av.codecs_available))
    library = ".".join(map(str, av.library_versions["libavcodec"]))
    if lacking:
        found = f"{av.__version__} without {', '.join(lacking)}"
        yield Row("PyAV", "WARN", found, "fast extraction of these", REINSTALL)
    else:
        yield Row("PyAV", "OK", f"{av.__version__} (libavcodec {library}): h264, hevc, vp9, aac, opus")


def sound() -> Iterator[Row]:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        yield Row("FLAC", "FAIL", f"soundfile cannot be imported: {first_line(error)}", "extract, training", REINSTALL)
        return
    found = f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    if "FLAC" in soundfile.available_formats():
        yield Row("FLAC", "OK", found)
    else:
        yield Row("FLAC", "FAIL", f"{found} without FLAC", "extract, training", REINSTALL)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, int]:
    first, second = [*re.findall(r"\d+", version), "0", "0"][:2]
    return int(first), int(second)


def _output(program: str, *arguments: str) -> str:
    command = [program, "-hide_banner", *arguments] if arguments != ("-version",) else [program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=True).stdout


def _names(listing: str) -> set[str]:
    """Codec names of `ffmpeg -decoders` or `-encoders`: the second word of a line."""
    return {words[1] for line in listing.splitlines() if len(words := line.split()) > 1}


def first_line(error: object) -> str:
    """The first line of a message, short enough for a table."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
