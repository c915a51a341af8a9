"""The leaderboard and the MLflow UI in a real browser: sorted, filtered, photographed. Skipped where there is none.

Images are kept under the folder that BENCH_SCREENSHOTS names, for a person to look at; else in pytest's own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.views.html import page as leaderboard_page
from bench.views.leaderboard import leaderboard
from bench.views.mlflow.book import FILTER
from bench.views.mlflow.server import resolve_uri
from bench.views.mlflow.sync import sync
from tests.records import HOSTILE, cell

ROOT = Path(__file__).parents[2]
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; fix: pip install .[test]")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Chromium of the system, that which PLAYWRIGHT names, or playwright's own."""
    named = os.environ.get("PLAYWRIGHT") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    with sync_api.sync_playwright() as playwright:
        program = named or playwright.chromium.executable_path
        if not Path(program).exists():
            pytest.skip("no Chromium: none in PATH, PLAYWRIGHT names none; fix: apt-get install chromium")
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=root)
        yield browser
        browser.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("BENCH_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


RECORDS = [
    *cell("none", "none", [0.0] * 20, accuracy=0.91),
    *cell("gm", "none", [1.0] * 15 + [0.0] * 5, accuracy=lambda i: 0.93 + 0.001 * (i % 3)),
    *cell("gm", "friends-b", [1.0] * 2 + [0.0] * 18, accuracy=0.90, seconds__train=3.0),
    *cell("gm", "epic-0.1", [0.0] * 20, accuracy=0.80),
    *cell("gm", "noise-b", [1.0] * 4, accuracy=0.85),
    *cell("gm", "failed", [None] * 2),
    *cell("sleeper", "friends-b", [0.1, 0.3] * 10, accuracy=0.89, protocol="another"),
    *cell(HOSTILE, "none", [1.0] * 20, accuracy=0.92),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("board") / "board.html"
    path.write_text(leaderboard_page(leaderboard(RECORDS), "none"), encoding="utf-8")
    return path


@pytest.fixture
def board(chromium: Any, file: Path) -> Iterator[Any]:
    """The page, opened without a network; nothing may be asked for, blocked or reported while it is used."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append("a script of a record ran"), dialog.dismiss()))  # type: ignore[func-returns-value]
    page.on("request", lambda request: None if request.url == file.as_uri() else complaints.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert not complaints


def column(page: Any, number: int) -> list[str]:
    """Texts of a column of the rows that are shown, from the top."""
    cells = page.locator(f"#cells tbody tr:not([hidden]) td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_sorting_by_mouse_and_keyboard(board: Any) -> None:
    head = board.locator("#cells thead th")
    success = head.filter(has_text="Success")
    success.get_by_role("button").click()
    assert success.get_attribute("aria-sort") == "ascending"
    rates = [int(match[1]) if (match := re.search(r", (\d+) %", text)) else None for text in column(board, 5)]
    assert rates == [0, 0, 10, 20, 75, 100, 100, None]  # what is not known comes last
    success.get_by_role("button").press("Enter")
    assert success.get_attribute("aria-sort") == "descending"
    rates = [int(match[1]) if (match := re.search(r", (\d+) %", text)) else None for text in column(board, 5)]
    assert rates == [100, 100, 75, 20, 10, 0, 0, None]
    accuracy = head.filter(has_text="Clean accuracy")
    accuracy.get_by_role("button").press("Space")
    assert [accuracy.get_attribute("aria-sort"), success.get_attribute("aria-sort")] == ["descending", "none"]
    assert column(board, 6)[0].startswith("93.1 %") and column(board, 6)[-1] == "-"
    head.filter(has_text="Defense").get_by_role("button").click()
    assert column(board, 3) == sorted(column(board, 3))


def test_filtering(board: Any) -> None:
    count = board.locator("#count")
    board.get_by_label("Search").fill("FRIENDS gm")
    assert column(board, 3) == ["friends-b"] and count.inner_text() == "1 of 8 cells"
    assert board.locator(".plot a:visible").count() == 1
    board.get_by_label("Search").fill("nowhere")
    assert column(board, 3) == [] and count.inner_text() == "0 of 8 cells"
    board.get_by_label("Search").fill("")
    board.locator("#protocol").select_option("another")
    assert column(board, 2) == ["sleeper"] and board.locator("section[data-of]:visible").count() == 2
    board.locator("#protocol").select_option("")
    board.locator("#attack").select_option(label=HOSTILE.replace("\x1b", "?").replace("\n", "?"))
    assert count.inner_text() == "1 of 8 cells"
    board.locator("#attack").select_option("gm")
    board.get_by_label("without flags").check()
    assert column(board, 3) == ["friends-b", "none"]


def test_points_tell_what_they_are_on_hover_and_focus(board: Any) -> None:
    tip = board.locator(".tip").first
    point = board.get_by_role("link", name="gm against friends-b: success 2/20")
    point.focus()
    assert tip.inner_text().startswith("gm against friends-b: success 2/20, 10 % [1, 32]; clean accuracy 90.0 %")
    board.get_by_role("link", name="gm against none").hover(force=True)
    assert tip.inner_text().startswith("gm against none: success 15/20")
    point.press("Enter")
    target = board.locator("tr:target")
    assert target.locator("td").nth(2).inner_text() == "friends-b"


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 360, "dark")]
)
def test_only_the_tables_scroll_sideways(
    chromium: Any, file: Path, screenshots: Path, name: str, width: int, scheme: str
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    screenshot = screenshots / f"leaderboard-{name}.png"
    page.screenshot(path=screenshot, full_page=True)
    with Image.open(screenshot) as image:
        corner = image.convert("L").getpixel((1, 1))
    assert (corner < 60) if scheme == "dark" else (corner > 230)  # type: ignore[operator]
    contrast = page.evaluate(CONTRAST)
    assert min(contrast.values()) >= 4.5, contrast  # WCAG AA
    page.close()


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (text) => {
    const [r, g, b] = rgb(text).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const found = {};
  for (const place of ["h1", "header p", "td", "td small", "td a", "td.wide", ".controls label", ".tip", "thead th"]) {
    const own = light(getComputedStyle(document.querySelector(place)).color);
    found[place] = (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05);
  }
  return found;
}"""


# MLflow


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `bench ui` over a small store."""
    out = tmp_path_factory.mktemp("store")
    uri = resolve_uri(None, out)
    assert uri is not None
    shown = [one for one in RECORDS if one["attack"] != HOSTILE and one["trial"] < 2 and one["protocol"] != "another"]
    sync(shown, uri, out)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bench", "ui", "--out", str(out), "--port", str(port)]
    log = (out / "log").open("wb")
    server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
    try:
        while not _answers(f"{address}/health"):
            assert server.poll() is None and time.monotonic() < deadline, (out / "log").read_text()
            time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # all that it has started, at once: the store is thrown away
        server.wait(60)
        log.close()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("by", ["hand", "link"])
def test_the_filter_shows_the_cells_in_the_mlflow_ui(chromium: Any, ui: str, screenshots: Path, by: str) -> None:
    context = chromium.new_context(viewport={"width": 1600, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{ui}/#/experiments/1/runs")
    search = page.get_by_placeholder(re.compile("metrics.rmse"))
    search.wait_for()
    if by == "hand":
        search.fill(FILTER)
        search.press("Enter")
    else:
        with page.expect_popup() as opened:
            page.get_by_role("link", name="Show the leaderboard").click()
        page = opened.value
        page.set_default_timeout(60_000)
    page.get_by_role("link", name="gm x friends-b").wait_for()
    page.get_by_text(re.compile(r"\b6 matching runs")).wait_for()
    page.screenshot(path=screenshots / f"mlflow-cells-by-{by}.png")
    assert page.get_by_role("link", name=re.compile("^trial ")).count() == 0
    for name in ("none x none", "gm x none", "gm x epic-0.1", "gm x noise-b", "gm x failed"):
        assert page.get_by_role("link", name=name, exact=True).count() == 1
    context.close()
