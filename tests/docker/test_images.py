"""The images, read as there is no docker engine here: what is copied exists, versions are pinned, nobody is root."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker"
IMAGES = ("cpu.Dockerfile", "cuda.Dockerfile")


def _reader() -> Any:
    spec = importlib.util.spec_from_file_location("dockerfile", Path(__file__).with_name("dockerfile.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dockerfile"] = module
    spec.loader.exec_module(module)
    return module


dockerfile = _reader()


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> Any:
    return dockerfile.parse((FOLDER / request.param).read_text(encoding="utf-8"))


def runs(image: Any) -> list[str]:
    return [step.rest for step in image if step.name == "RUN"]


def test_the_base_is_the_same_slim_python_with_a_tag(image: Any) -> None:
    bases = [step.rest for step in image if step.name == "FROM"]
    assert bases == ["python:3.12-slim-bookworm"]
    assert image[0].name == "FROM"


def test_every_instruction_is_one_that_docker_knows(image: Any) -> None:
    known = {"FROM", "LABEL", "RUN", "ENV", "ARG", "WORKDIR", "COPY", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {step.name for step in image} <= known  # No ADD: it would fetch what nobody checks.


def test_everything_that_is_copied_exists_and_is_not_ignored(image: Any) -> None:
    rules = dockerfile.rules()
    for step in image:
        if step.name == "COPY":
            *sources, _ = step.words()
            for source in sources:
                assert (ROOT / source).exists(), f"line {step.line}: {source} is not there"
                assert not dockerfile.ignored(source, rules), f"line {step.line}: .dockerignore leaves {source} out"


def test_versions_come_from_the_constraints_file(image: Any) -> None:
    installs = [run for run in runs(image) if "pip install" in run]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in run and "--no-cache-dir" in run for run in installs)


def test_no_host_of_packages_is_named(image: Any) -> None:
    text = " ".join(f"{step.name} {step.rest}" for step in image)
    assert not re.search(r"https?:|index-url|extra-index|find-links|curl|wget", text)


def test_apt_leaves_no_lists_and_installs_nothing_unasked(image: Any) -> None:
    for run in runs(image):
        if "apt-get" in run:
            assert "apt-get update" in run
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run


def test_ffmpeg_and_a_compiler_are_inside(image: Any) -> None:
    apt = next(run for run in runs(image) if "apt-get" in run)
    assert {"ffmpeg", "g++", "libc6-dev", "tini"} <= set(apt.split())
    assert not any("purge" in run or "apt-get remove" in run for run in runs(image))


def test_the_last_user_is_not_root_and_ran_the_smoke_test(image: Any) -> None:
    user = [step for step in image if step.name == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d*:\d+", user.rest)
    doctor = next(step for step in image if step.rest.startswith("kdctool doctor"))
    assert doctor.line > user.line
    assert image[-2].name == "ENTRYPOINT"


def test_the_cpu_image_runs_the_demo_when_asked() -> None:
    image = dockerfile.parse((FOLDER / "cpu.Dockerfile").read_text())
    assert any(step.name == "ARG" and step.rest == "DEMO=0" for step in image)
    assert any("kdctool demo --out" in run and '"$DEMO" = 1' in run for run in runs(image))


def test_dependencies_do_not_change_with_the_code(image: Any) -> None:
    places = {step.rest.split()[0]: n for n, step in enumerate(image) if step.name == "COPY"}
    heavy = next(n for n, step in enumerate(image) if "--requirement" in step.rest)
    assert places["pyproject.toml"] < heavy < places["kdctool"]


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("kdctool/cli/__init__.py", False),
        ("kdctool/recipes", False),
        ("recipes/small.toml", False),
        ("constraints.txt", False),
        (".git/config", True),
        ("runs/x/checkpoints", True),
        ("shards/train-000000.tar", True),
        (".venv/bin/python", True),
        ("kdctool/cli/__pycache__/demo.cpython-312.pyc", True),
        ("tests/conftest.py", True),
    ],
)
def test_only_the_package_goes_into_a_build(path: str, out: bool) -> None:
    assert dockerfile.ignored(path, dockerfile.rules()) == out


def test_compose_builds_these_images_with_memory_for_the_workers() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    services = compose["services"]
    assert {service["build"]["dockerfile"] for service in services.values()} == {f"docker/{name}" for name in IMAGES}
    for service in services.values():
        assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()
        assert service["shm_size"]
        assert service["stop_grace_period"] == "2m"
    devices = services["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    assert "deploy" not in services["cpu"]


def test_the_reader_joins_lines_and_tells_where_they_begin() -> None:
    steps = dockerfile.parse('# syntax\nRUN a \\\n # not a comment of ours\\\n && b\n\nCMD ["x", "y z"]\n')
    assert [(step.line, step.name) for step in steps] == [(2, "RUN"), (6, "CMD")]
    assert steps[1].words() == ["x", "y z"]
