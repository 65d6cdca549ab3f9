"""The page as a person sees it, in a real Chromium: recommend, why, similar, feedback, the changed list.

A screenshot is kept as page.png in $RAYREC_ARTEFACTS, or in runs/ where that folder is.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.recipe import Serve
from app.serving.listen import API_KEY
from app.serving.service import running
from tests.bundles import bundle_of, describe_items, random_model
from tests.conftest import REPOSITORY
from tests.e2e.test_http import free_port
from tests.tiny import tiny_dataset

playwright = pytest.importorskip("playwright.sync_api", reason="the page is opened with playwright")
expect = playwright.expect
expect.set_options(timeout=20_000)  # a busy machine is slow, and no test waits for what does not come

KEY = "sesame"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ITEMS = 40
HOSTILE = '<img src=x onerror="window.hacked = 1">'
SQUARE = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'%3E"
    "%3Crect width='9' height='9' fill='hsl({},55%25,65%25)'/%3E"
    "%3Ccircle cx='4.5' cy='4.5' r='{}' fill='white'/%3E%3C/svg%3E"
)
KINDS = ("lamp", "rug", "clock", "vase", "stool")


def picture(row: int) -> str:
    """An image, which for every other item is longer than texts in lists of items may be."""
    square = SQUARE.format(row * 67 % 360, 1 + row % 3)
    return square.replace("%3C/svg", f"%3C!--{'long' * 300}--%3E%3C/svg") if row % 2 else square


@pytest.fixture(scope="module")
def url(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that asks for a key, of items with titles, pictures and prices."""
    folder = tmp_path_factory.mktemp("page")
    dataset = tiny_dataset(folder / "dataset", users=60, items=ITEMS, events=900)
    rows = range(1, ITEMS + 1)
    describe_items(
        dataset,
        item=["", *(f"i{row}" for row in rows)],
        title=["", *(f"{HOSTILE if row % 4 == 0 else 'Fine'} {KINDS[row % 5]} {row}" for row in rows)],
        price=["", *(f"{row + 0.5}" for row in rows)],
        image=["", *(picture(row) for row in rows)],
    )
    bundle_of(random_model("two_tower", dataset), dataset, folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(API_KEY, KEY)
        with running(folder / "bundle", Serve(port=free_port())) as address:
            yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if path is None:
        pytest.skip(f"no browser to open the page in: install one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which Chromium cannot have as root
        browser = driver.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


class Tab:
    """A tab of the browser, and what went wrong in it."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(20_000)
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._keep)

    def _keep(self, message: Any) -> None:
        refused = "status of 4" in message.text  # an answer that the page shows, e.g. that a key is needed
        if message.type in ("error", "warning") and not refused:
            self.faults.append(message.text)

    def open(self, url: str) -> Any:
        """The page with a list on it: what a person does who has the key."""
        self.page.goto(url)
        self.page.get_by_label("API key").fill(KEY)
        self.page.get_by_role("button", name="Recommend").click()
        expect(self.page.locator("#now > li")).to_have_count(10)
        return self.page


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    tab = Tab(browser, viewport={"width": 1200, "height": 900})
    yield tab
    tab.page.close()
    assert tab.faults == []


def items(page: Any, list_id: str) -> list[str]:
    return [row.get_attribute("data-item") for row in page.locator(f"#{list_id} > li").all()]


def keep(page: Any, folder: Path) -> None:
    """Take the screenshot that a person looks at after the tests."""
    page.screenshot(path=folder / "page.png", full_page=True)
    kept = Path(os.environ.get("RAYREC_ARTEFACTS") or REPOSITORY / "runs")
    if kept.is_dir():
        shutil.copy(folder / "page.png", kept / "page.png")


def test_open_recommend_why_similar_feedback_and_the_list_has_changed(
    tab: Tab, url: str, tmp_path: Path
) -> None:
    page = tab.open(url)
    user = page.get_by_label("User").input_value()
    assert re.fullmatch(r"u\d+", user)  # one of the log, filled in
    expect(page.locator("#now-title")).to_have_text(f"Recommended to {user}")
    expect(page.locator("#history > li").first).to_contain_text(re.compile(r"lamp|rug|clock|vase|stool"))
    first = page.locator("#now > li").first
    expect(first).to_contain_text("price")

    first.get_by_role("button", name="Why?").click()
    expect(first.locator(".why")).to_contain_text(
        re.compile(r"Because of .*(lamp|rug|clock|vase|stool) \d+ \(")
    )

    first.get_by_role("button", name="Similar").click()
    expect(page.locator("#similar > li")).to_have_count(6)
    expect(page.locator("#similar-title")).to_be_focused()

    before = items(page, "now")
    first.get_by_role("button", name="+ view").click()
    expect(page.locator("#before > li")).to_have_count(10)
    after = items(page, "now")
    assert items(page, "before") == before
    assert before[0] not in after
    expect(page.locator("#before > li").first).to_contain_text("gone")
    assert marks(page) == [expected_mark(before, after, item) for item in after]
    expect(page.locator("#history > li").first).to_have_attribute("data-item", before[0])
    expect(page.get_by_role("status").first).to_contain_text("Stored and ranked again")
    keep(page, tmp_path)


def marks(page: Any) -> list[str]:
    return [mark.text_content() for mark in page.locator("#now > li > .move > span:first-child").all()]


def expected_mark(before: list[str], after: list[str], item: str) -> str:
    if item not in before:
        return "new"
    up = before.index(item) - after.index(item)
    return f"▲ {up}" if up > 0 else f"▼ {-up}" if up < 0 else "="


def test_titles_are_text_and_pictures_are_pictures(tab: Tab, url: str) -> None:
    page = tab.open(url)
    shown = " ".join(page.locator(".title").all_text_contents())
    assert HOSTILE in shown and "Fine" in shown
    assert page.evaluate("window.hacked") is None
    sources = page.evaluate("[...document.images].map(image => image.src)")
    assert sources and all(source.startswith("data:image/svg+xml,") for source in sources)
    expect(page.locator("#now .picture img")).to_have_count(10)
    loaded = "[...document.querySelectorAll('#now img')].filter(image => image.naturalWidth)"
    page.wait_for_function(f"{loaded}.length >= 5")  # those further down load when they are scrolled to
    page.wait_for_function(f"{loaded}.some(image => image.src.length > 1200)")


def test_a_keyboard_is_enough(tab: Tab, url: str) -> None:
    page = tab.page
    page.goto(url)
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#now > li")).to_have_count(10)
    page.locator("#history").focus()
    page.keyboard.press("Tab")
    expect(page.locator("#now > li").first.get_by_role("button", name="Why?")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".why").first).not_to_be_empty()


def test_it_fits_on_a_phone(browser: Any, url: str) -> None:
    tab = Tab(browser, viewport={"width": 360, "height": 740}, is_mobile=True)
    page = tab.open(url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tab.page.close()
    assert tab.faults == []


def test_a_user_that_nobody_knows(tab: Tab, url: str) -> None:
    page = tab.open(url)
    page.get_by_label("User").fill("nobody <b>")
    page.get_by_label("User").press("Enter")
    expect(page.locator("#history-title")).to_have_text("Nothing is known of nobody <b>")
    expect(page.get_by_role("status").first).to_contain_text("training did not know")


def test_the_documentation_sends_what_it_shows(tab: Tab, url: str) -> None:
    page = tab.page
    page.goto(f"{url}/docs")
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("API key").press("Tab")
    call = page.locator('[data-path="/v1/recommend"]')
    call.locator("summary").click()
    expect(call.locator("textarea")).to_have_value(re.compile(r'^\{"user":"u\d+","k":5\}$'))
    expect(call.locator(".curl")).to_contain_text(f"curl -s '{url}/v1/recommend'")
    call.get_by_role("button", name="Send").click()
    expect(call.locator(".answer")).to_contain_text(re.compile(r'^200 in \d+ ms\s.*"items"', re.DOTALL))
    known = page.locator('[data-path="/v1/users/{id}"]')
    known.locator("summary").click()
    known.get_by_role("button", name="Send").click()
    expect(known.locator(".answer")).to_contain_text(re.compile(r'^200 in .*"events"', re.DOTALL))
    call.locator("textarea").fill('{"user": 1.5}')
    call.get_by_role("button", name="Send").click()
    expect(call.locator(".answer")).to_contain_text(re.compile(r"^422"))
