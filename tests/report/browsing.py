"""A page in a browser, and what a test asks of it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE, NARROW = (1500, 900), (390, 844)
SECONDS = 1.2
"""Of the clips' sound."""

CONTRAST = """
() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => {
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = c.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const c = parse(getComputedStyle(at).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
      if (c.length === 4 && c[3] > 0) return null;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || ["SCRIPT", "NOSCRIPT", "OPTION"].includes(node.tagName)) continue;
    if (node.closest(".matrix-drawing, :disabled") || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const back = behind(node);
    if (!back) continue;
    const front = parse(node.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push([walker.currentNode.textContent.trim().slice(0, 40), ratio.toFixed(2)]);
  }
  return poor;
}
"""
"""Texts whose contrast with what lies behind them is below 4.5, with that contrast."""


class Watched:
    """A page and everything that went wrong in it."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda line: self.faults.append(line.text) if line.type == "error" else None)
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def open(self, path: Path, fragment: str = "") -> Any:
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_selector("html[data-ready]")
        return self.page


def metrics_of(run: Path, task: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "eval" / task / "results.json").read_text())["metrics"]
    return found


def pages_of(page: Any) -> Iterator[None]:
    """Each page of the gallery's direction that is shown."""
    yield
    while page.locator(".pager [data-step='1']").is_enabled():
        page.locator(".pager [data-step='1']").click()
        yield
