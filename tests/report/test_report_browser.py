"""The page in a real headless Chromium, from file://, without a network: what it does.

Groups of assertions: 1 offline and silent, 2 numbers, 3 media, 4 gallery, 5 controls, 6 heat maps, 7 hostile names.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_runs
from report.browsing import SECONDS, Watched, metrics_of, pages_of

from kdctool.stages import report as stage


def test_1_it_asks_for_nothing_but_itself_and_is_silent(watched: Watched, file: Path) -> None:
    page = watched.open(file)
    for way in ("v2a", "a2v"):
        page.locator(f".tabs [data-way={way}]").click()
        for _ in pages_of(page):
            pass
    page.locator("#theme").click()
    assert [url for url in watched.requests if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    assert watched.faults == []
    assert (
        page.locator("meta[http-equiv=Content-Security-Policy]")
        .get_attribute("content")
        .startswith("default-src 'none'")
    )
    # The policy is in force, not only written down.
    blocked = page.evaluate("fetch('https://example.org/').then(() => 'open', () => 'blocked')")
    assert blocked == "blocked"


def test_2_title_cards_and_table_equal_results_json(watched: Watched, file: Path, run: Path) -> None:
    page = watched.open(file)
    assert page.title() == run.name
    assert page.locator("h1").inner_text() == run.name
    told = metrics_of(run, "retrieval")["a2v_r1"]
    card = page.locator(".card", has_text="sound finds its video").first
    assert card.locator(".card-value").inner_text() == f"{told['value']:.3f}"
    under = card.locator(".card-under").inner_text()
    assert f"{told['low']:.3f} to {told['high']:.3f}" in under
    assert f"chance {told['chance']:.3f}" in under
    assert "n 24 of 26" in under
    for task in ("retrieval", "localization", "inpainting", "classification", "diagnose"):
        for name, metric in metrics_of(run, task).items():
            row = page.locator(f"section[data-task={task}] .metrics tr", has=page.get_by_text(name, exact=True)).last
            digits = 1 if name.endswith("_rank") else 3
            assert row.locator("td .cell-text").first.inner_text() == f"{metric['value']:.{digits}f}", name
    embedded = json.loads(page.locator("#kdctool-results").text_content())
    assert embedded["evaluations"][0]["results"]["metrics"] == metrics_of(run, "retrieval")


def test_3_every_picture_is_drawn_and_every_sound_has_its_length(watched: Watched, file: Path) -> None:
    page = watched.open(file)
    heard: set[str] = set()
    for way in ("a2v", "v2a"):
        page.locator(f".tabs [data-way={way}]").click()
        for _ in pages_of(page):
            page.wait_for_function("[...document.querySelectorAll('img[src]')].every((i) => i.complete)")
            bad = page.evaluate(
                "[...document.querySelectorAll('img')].filter((i) => i.checkVisibility())"
                ".filter((i) => !i.complete || !i.naturalWidth || !i.alt.trim()).map((i) => i.outerHTML.slice(0, 200))"
            )
            assert bad == []
            buttons = ".way:not([hidden]) .query:not([hidden]) .play"
            there = page.locator(buttons).evaluate_all("all => all.map((b) => b.dataset.sound)")
            for sound in sorted(set(there) - heard):
                page.locator(f"{buttons}[data-sound={sound}]").first.click()
            heard |= set(there)
    page.wait_for_function("[...document.querySelectorAll('audio')].every((a) => a.readyState >= 1)")
    lengths = page.evaluate(
        "[...document.querySelectorAll('audio')].map((a) => [a.duration, Number(a.dataset.seconds)])"
    )
    assert len(lengths) == len(heard) == 24
    for found, told in lengths:
        assert told == pytest.approx(SECONDS, abs=0.01)
        assert found == pytest.approx(told, abs=0.2)


def test_4_the_gallery_has_the_stored_order_and_marks_the_true_item(watched: Watched, file: Path, run: Path) -> None:
    page = watched.open(file)
    assets = np.load(run / "eval" / "retrieval" / "assets.npz")
    for way in ("a2v", "v2a"):
        shown = page.evaluate(
            "(way) => [...document.querySelectorAll(`.way[data-way=${way}] .query`)].map((q) => ({uid: q.dataset.uid,"
            " rank: Number(q.dataset.rank), answers: [...q.querySelectorAll('.answer')].map((a) => [a.dataset.uid,"
            " a.dataset.place, a.classList.contains('true'), a.textContent.includes('own')])}))",
            way,
        )
        shown.sort(key=lambda query: assets[f"gallery.query_{way}"].tolist().index(query["uid"]))
        assert [query["uid"] for query in shown] == assets[f"gallery.query_{way}"].tolist()
        for n, query in enumerate(shown):
            top = [uid for uid, place, _, _ in query["answers"] if int(float(place)) <= 5]
            assert top == assets[f"gallery.top_{way}"][n].tolist()
            assert query["rank"] == assets[f"gallery.rank_{way}"][n]
            marked = [(uid, float(place)) for uid, place, is_true, said in query["answers"] if is_true and said]
            assert marked == [(query["uid"], query["rank"])]


def test_4_a_collapsed_model_gets_a_banner_and_no_full_score(watched: Watched, run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "collapsed")
    report_runs.add_retrieval(copied, run.parent.parent / "shards", collapsed=True)
    page = watched.open(stage.run(copied).path)
    assert page.locator("[data-banner=retrieval]").is_visible()
    assert "ollapsed" in page.locator("[data-banner=retrieval]").inner_text()
    card = page.locator(".card", has_text="sound finds its video").first
    assert card.locator(".card-value").inner_text() == "0.042"
    assert "not told apart from chance" in card.inner_text()


def test_5_filter_order_and_pages_work_by_mouse_and_keyboard_and_stay_in_the_address(
    watched: Watched, file: Path, chromium: Any
) -> None:
    page = watched.open(file)
    visible = ".way:not([hidden]) .query:not([hidden])"
    assert page.locator(visible).count() == 6
    first = page.locator(visible).first.get_attribute("data-uid")
    page.locator(".pager [data-step='1']").click()
    assert page.locator(visible).first.get_attribute("data-uid") != first
    page.locator(".tabs [data-way=v2a]").focus()
    page.keyboard.press("Enter")
    assert page.locator(".way:not([hidden])").get_attribute("data-way") == "v2a"
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-where]").inner_text().startswith("7 to")
    page.locator("[data-order]").select_option("worst")
    ranks = page.evaluate(f"[...document.querySelectorAll('{visible}')].map((q) => Number(q.dataset.rank))")
    assert ranks == sorted(ranks, reverse=True)
    page.locator("[data-filter]").select_option("first")
    assert set(page.locator(visible).evaluate_all("all => all.map((q) => q.dataset.rank)")) <= {"1.0"}
    kept = page.locator(visible).evaluate_all("all => all.map((q) => q.dataset.uid)")
    again = Watched(chromium.new_context(offline=True))
    restored = again.open(file, "#" + page.url.split("#")[1])
    assert restored.locator(visible).evaluate_all("all => all.map((q) => q.dataset.uid)") == kept
    assert restored.locator("[data-filter]").input_value() == "first"
    restored.context.close()


def test_5_everything_that_can_be_used_is_reached_by_tab(watched: Watched, file: Path) -> None:
    page = watched.open(file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(260):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
    for what in ("theme", "play", "SELECT", "SUMMARY", "scroll", "sort"):
        assert what in reached, what
    # A sound starts and stops by keyboard, and says so.
    button = page.locator(".way:not([hidden]) .play").first
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert button.get_attribute("aria-pressed") == "false"


def test_5_the_table_of_classes_sorts_and_filters(watched: Watched, file: Path) -> None:
    page = watched.open(file)
    table = page.locator("table.sortable")
    cells = "table => [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[2].textContent.trim())"
    table.get_by_role("button", name="ap").click()
    assert table.locator("th[aria-sort=ascending]").count() == 1
    found = [float(text) for text in table.evaluate(cells)]
    assert found == sorted(found)
    page.locator("[data-filter-table]").fill("white")
    assert len(table.evaluate(cells)) == 1


def test_6_heat_maps_are_not_blank_and_peak_where_the_map_does(watched: Watched, file: Path, run: Path) -> None:
    page = watched.open(file)
    assets = np.load(run / "eval" / "localization" / "assets.npz")
    found = page.evaluate("""async () => {
      const out = {};
      for (const item of document.querySelectorAll(".maps li")) {
        const image = item.querySelector("img.heat");
        await image.decode();
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0);
        const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
        const alpha = [...data].filter((_, i) => i % 4 === 3);
        out[item.dataset.uid] = {alpha, width: canvas.width, peak: item.dataset.peak.split(",").map(Number)};
      }
      return out;
    }""")
    assert list(found) == assets["uids"].tolist()
    for uid, heat in zip(assets["uids"].tolist(), assets["map"], strict=True):
        y, x = np.unravel_index(int(heat.astype(np.float32).argmax()), heat.shape)
        drawn = np.array(found[uid]["alpha"]).reshape(heat.shape)
        assert found[uid]["peak"] == [x, y]
        assert drawn[y, x] == drawn.max()
        assert drawn.std() > 5
    page.locator("[data-heat]").click()
    assert not page.locator("img.heat").first.is_visible()
    assert page.locator("img.frame").first.is_visible()


def test_7_hostile_names_are_text_and_nothing_runs(watched: Watched, file: Path) -> None:
    page = watched.open(file)
    for way in ("a2v", "v2a"):
        page.locator(f".tabs [data-way={way}]").click()
        for _ in pages_of(page):
            pass
    text = page.evaluate("document.body.textContent")
    for name in ("<img src=x onerror=alert(1)>.mp4", "</script><script>alert(2)</script>.mp4", "שלום עולם", "n" * 200,
                 "two\\nlines\\tand", "not-utf8-\\xff\\xfe", "{{ 7 * 7 }}"):  # fmt: skip
        assert name in text, name
    assert page.locator("script").count() == 3
    assert page.locator("img[onerror]").count() == 0
    assert watched.faults == []
