"""The page in a real headless Chromium, from file://, without a network: how it looks.

Groups of assertions: 8 layout, contrast and colours, 9 size, speed and pages with little in them.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import report_runs
from report.browsing import CONTRAST, NARROW, WIDE, Watched

from kdctool.stages import report as stage


@pytest.mark.parametrize("size", [WIDE, (1280, 900), NARROW], ids=["1500", "1280", "390"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_8_it_fits_and_can_be_read_in_light_and_dark(
    chromium: Any, file: Path, size: tuple[int, int], scheme: str
) -> None:
    context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True)
    page = Watched(context).open(file)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.evaluate(CONTRAST) == []
    small = page.evaluate(
        "[...document.querySelectorAll('button, select, input')].filter((e) => e.checkVisibility())"
        ".filter((e) => e.getBoundingClientRect().height < 18"
        " || !(e.labels?.length || e.textContent.trim() || e.ariaLabel))"
        ".map((e) => e.outerHTML.slice(0, 120))"
    )
    assert small == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    context.close()


def test_8_light_dark_and_the_switch_differ(chromium: Any, file: Path) -> None:
    shots = {}
    for scheme in ("light", "dark"):
        context = chromium.new_context(color_scheme=scheme, offline=True)
        page = Watched(context).open(file)
        shots[scheme] = page.screenshot()
        assert page.screenshot() == shots[scheme], "the same page twice is the same picture"
        context.close()
    assert shots["light"] != shots["dark"]
    context = chromium.new_context(color_scheme="dark", offline=True)
    page = Watched(context).open(file)
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.locator("#theme").click()
    light = page.evaluate(paper)
    assert light != dark
    page.locator("#theme").click()
    assert page.evaluate(paper) == dark
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    context.close()


def test_8_nothing_moves_for_those_who_ask_for_that(chromium: Any, file: Path) -> None:
    context = chromium.new_context(reduced_motion="reduce", offline=True)
    page = Watched(context).open(file)
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    context.close()


def test_8_numbers_and_curves_are_there_without_scripts(chromium: Any, file: Path) -> None:
    context = chromium.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("svg.chart").count() > 8
    assert page.locator("noscript p").is_visible()
    assert page.locator(".query").last.is_visible()
    context.close()


def test_9_it_is_small_and_loads_fast(watched: Watched, file: Path) -> None:
    assert file.stat().st_size < 25_000_000
    page = watched.open(file)
    assert page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 2000


@pytest.mark.parametrize("queries", [0, 1])
def test_9_pages_with_no_and_one_result_render(watched: Watched, run: Path, tmp_path: Path, queries: int) -> None:
    copied = shutil.copytree(run, tmp_path / "few")
    shutil.rmtree(copied / "eval")
    if queries:
        report_runs.add_retrieval(copied, run.parent.parent / "shards", queries=1)
    page = watched.open(stage.run(copied).path)
    assert page.locator(".query:visible").count() == queries
    assert page.locator("svg.chart").count() > 8
    assert watched.faults == []
    assert page.evaluate("document.documentElement.scrollWidth") == WIDE[0]
