"""A full report and a browser to open it in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_runs
from report.browsing import CHROMIUM, SECONDS, WIDE, Watched

from kdctool.stages import report as stage


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.make_full(tmp_path_factory.mktemp("browser"), seconds=SECONDS)


@pytest.fixture(scope="session")
def file(run: Path) -> Path:
    return stage.run(run).path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium of the system, driven by Playwright; skips where either is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install '.[report-test]'"
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def watched(chromium: Any) -> Iterator[Watched]:
    context = chromium.new_context(viewport={"width": WIDE[0], "height": WIDE[1]}, offline=True)
    yield Watched(context)
    context.close()
