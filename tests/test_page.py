"""The page in a real Chromium, clicked through as a person would: every step is read off the page itself.

Playwright drives the system's Chromium or Chrome where there is one, and else its own (`playwright install chromium`).
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from plain_service import BITS, make_index, started

COUNT, DOUBLES = 20, 2
PATIENCE = 30_000  # milliseconds
expect.set_options(timeout=PATIENCE)


def make_place(root: Path) -> Path:
    """Smooth pictures, two of them twice, and an index of them."""
    (root / "photos").mkdir()
    for number in range(COUNT):
        coarse = np.random.default_rng(number % (COUNT - DOUBLES)).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(root / "photos" / f"{number:02d}.png")
    make_index(root / "index", root / "photos")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return root


@contextlib.contextmanager
def chromium(*words: str) -> Iterator[Browser]:
    own = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=own, args=["--no-sandbox", "--disable-gpu", *words])
        yield found
        found.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def service(place):
    with started(place / "index") as (address, process):
        yield address, process


@pytest.fixture
def page(browser, service):
    """A fresh page; an error in its console fails the test."""
    context = browser.new_context(base_url=service[0], viewport={"width": 1200, "height": 800})
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
    yield opened
    context.close()
    assert wrong == []


def tiles(page):
    return page.locator("main section:not([hidden]) .tile:visible")


def test_grid_photo_slider_and_back(page):
    page.goto("/")
    expect(tiles(page)).to_have_count(COUNT)
    expect(page.get_by_text("\u2248 1", exact=True)).to_have_count(2 * DOUBLES)
    page.get_by_role("link", name="18.png, 1 near-duplicate").click()
    expect(page).to_have_url(re.compile(r"/\?photo=19$"))
    expect(tiles(page)).to_have_count(COUNT - 1)
    expect(page.locator("#query-name")).to_have_text("18.png")
    expect(page.locator("#results-title")).to_be_focused()
    expect(tiles(page).first).to_have_attribute("aria-label", "00.png, near-duplicate, 0 bits away")
    shown = [int(item.get_attribute("data-distance")) for item in page.locator("#hit-grid li").all()]
    assert shown == sorted(shown)
    slider = page.get_by_label("Maximum distance")
    slider.fill("20")
    near = sum(distance <= 20 for distance in shown)
    assert 0 < near < len(shown)
    expect(tiles(page)).to_have_count(near)
    expect(page).to_have_url(re.compile(r"photo=19&radius=20$"))
    page.reload()
    expect(tiles(page)).to_have_count(near)
    assert slider.input_value() == "20" and slider.get_attribute("max") == str(BITS)
    tiles(page).nth(0).click()
    expect(page.locator("#query-name")).to_have_text("00.png")
    page.go_back()
    expect(page.locator("#query-name")).to_have_text("18.png")
    page.go_back()
    expect(tiles(page)).to_have_count(COUNT)


def test_keys_alone(page):
    page.goto("/")
    expect(tiles(page)).to_have_count(COUNT)
    page.keyboard.press("ArrowDown")
    expect(tiles(page).nth(0)).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(tiles(page).nth(2)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#query-name")).to_have_text("02.png")
    page.keyboard.press("Escape")
    expect(tiles(page).nth(2)).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_role("button", name="Search with an image")).to_be_focused()


def test_uploads_and_their_errors(page, place):
    page.goto("/")
    expect(tiles(page)).to_have_count(COUNT)
    page.set_input_files("#file", place / "photos" / "05.png")
    expect(tiles(page)).to_have_count(COUNT)
    expect(tiles(page).first).to_have_attribute("aria-label", "05.png, near-duplicate, 0 bits away")
    expect(page).to_have_url(re.compile(r"/#code=[0-9a-f]{8}\.[0-9a-f]{16}$"))
    page.reload()
    expect(tiles(page).first).to_have_attribute("aria-label", "05.png, near-duplicate, 0 bits away")
    expect(page.locator("#query-image")).to_have_js_property("naturalWidth", 64)
    expect(page.locator("#query-name")).to_have_text("05.png")
    page.set_input_files("#file", place / "broken.png")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The image cannot be read: ")
    page.go_back()
    expect(page.locator("#query-name")).to_have_text("05.png")
    page.goto("/?photo=999")
    expect(alert).to_contain_text("There is no such photo.")
    alert.get_by_role("link", name="All photos").click()
    expect(tiles(page)).to_have_count(COUNT)


def test_a_phone_has_no_sideways_scrolling_and_every_control_has_a_name(page):
    page.set_viewport_size({"width": 390, "height": 800})
    for path in ("/", "/?photo=3", "/?duplicates"):
        page.goto(path)
        expect(tiles(page).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        nameless = page.evaluate(
            "[...document.querySelectorAll('a, button, input, select')].filter((e) => e.checkVisibility() &&"
            " !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length"
        )
        assert nameless == 0


def test_the_larger_view_by_keys(page):
    page.goto("/")
    expect(tiles(page)).to_have_count(COUNT)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    viewer = page.get_by_role("dialog", name="Larger view")
    name = viewer.locator("#viewer-name")
    expect(name).to_have_text("00.png")
    expect(viewer.get_by_role("button", name="Previous photo")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(name).to_have_text("01.png")
    expect(viewer.get_by_role("img", name="01.png")).to_have_js_property("naturalWidth", 64)
    page.keyboard.press("x")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(tiles(page).nth(1)).to_be_focused()
    expect(page.locator("#selection-count")).to_have_text("1 photo selected")
    page.locator(".view").nth(COUNT - 1).click()
    expect(viewer.get_by_role("button", name="Next photo")).to_be_hidden()
    viewer.get_by_role("link", name="Similar photos").click()
    expect(page.locator("#query-name")).to_have_text(f"{COUNT - 1}.png")


def test_duplicates_are_selected_and_their_paths_copied_and_downloaded(page, place):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto("/")
    page.get_by_role("link", name="Duplicates").click()
    groups = page.locator(".group")
    expect(groups).to_have_count(DOUBLES)
    best, other = groups.first.locator(".tile").all()
    expect(best).to_have_attribute("aria-label", re.compile(r"best copy, 64 \u00d7 64, 1?\d kB$"))
    groups.first.get_by_role("button", name="Select all but the best").click()
    chosen = other.get_attribute("aria-label").split(",")[0]
    expect(page.get_by_role("checkbox", checked=True, name=f"Select {chosen}")).to_have_count(1)
    page.get_by_role("button", name="Copy paths").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == str(place / "photos" / chosen)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download list").click()
    assert Path(download.value.path()).read_text() == f"{place / 'photos' / chosen}\n"
    other.click()
    expect(page.locator("#query-name")).to_have_text(chosen)
    page.keyboard.press("Escape")
    expect(other).to_be_focused()


def test_the_filter_is_the_url(page):
    page.goto("/")
    expect(tiles(page)).to_have_count(COUNT)
    page.get_by_label("Folder").select_option("photos")
    expect(page).to_have_url(re.compile(r"/\?folder=photos$"))
    expect(page.locator("#all-title")).to_have_text(f"{COUNT} photos")
    page.get_by_label("From").fill("1970-01-03")  # all are of the first day
    expect(page.locator("#all-title")).to_have_text("0 photos")
    page.reload()
    expect(page.locator("#all-title")).to_have_text("0 photos")
    page.get_by_role("button", name="Show all").click()
    expect(tiles(page)).to_have_count(COUNT)
    month = page.get_by_label("Jump to").locator("option").nth(1)
    page.get_by_label("Jump to").select_option(month.get_attribute("value"))
    expect(page).to_have_url(re.compile(r"/\?until=19(69-12|70-01)-31$"))
    expect(page.locator("#all-title")).to_have_text(f"{COUNT} photos")


def test_an_empty_index_says_what_to_do(browser, tmp_path):
    (tmp_path / "photos").mkdir()
    make_index(tmp_path / "index", tmp_path / "photos")
    with started(tmp_path / "index") as (address, process):
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#empty")).to_contain_text("no photos yet")
        expect(page.locator("#empty-command")).to_contain_text("--index index")
        process.terminate()
        process.wait(20)
        page.keyboard.press("Tab")
        page.evaluate("history.pushState(null, '', '/?photo=1'); dispatchEvent(new PopStateEvent('popstate'))")
        expect(page.get_by_role("alert")).to_contain_text("is distilhash serve still running?")
        page.close()
