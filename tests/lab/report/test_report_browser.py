"""The report in a real browser, where there is one: Chromium, driven by playwright."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import chromium_options, find_chromium
from test_report import committed_report

from redlab.lab.notebooks import list_notebooks
from redlab.paths import checkout

SHOTS = checkout() / "build" / "screenshots"


@pytest.fixture(scope="module")
def program() -> str:
    try:
        return find_chromium()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report of the committed notebooks, with the outputs that they hold."""
    return committed_report(tmp_path_factory.mktemp("runs"))


def test_a_browser_shows_it_without_a_request_and_without_an_error(program, report):
    browsers = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[ui]'")
    SHOTS.mkdir(parents=True, exist_ok=True)
    asked, complained = [], []
    with browsers.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=chromium_options())
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complained.append(message.text))
        page.on("pageerror", lambda error: complained.append(str(error)))
        page.goto(report.as_uri())
        page.wait_for_load_state()
        page.screenshot(path=SHOTS / "report.png")
        names = list_notebooks()
        seen = page.evaluate("names => names.map(name => document.getElementById(name).offsetHeight)", names)
        drawn = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        formula = page.evaluate("document.querySelector('math').getBoundingClientRect().width")
        too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        current = []
        for name in names:
            page.evaluate("name => document.getElementById(name).scrollIntoView()", name)
            page.wait_for_function("name => document.querySelector('nav a[aria-current]').hash == `#${name}`", arg=name)
            current.append(page.locator("nav a[aria-current]").bounding_box()["y"])
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        sides = page.evaluate("[...document.querySelectorAll('.table')].map(t => t.getBoundingClientRect().right)")
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
        page.locator("details.code > summary").first.click()
        assert page.locator("details.code pre").first.is_visible()
        browser.close()
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert complained == []
    assert min(seen) > 200
    assert min(drawn) > 100
    assert formula > 5
    assert too_wide <= 0
    assert all(0 <= y <= 1000 for y in current)  # the entry is in sight
    assert max(sides) <= 1440
