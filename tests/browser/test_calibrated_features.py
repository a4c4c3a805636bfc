"""Calibrated features in a real browser: two tasks, ten images each; accuracies before and after, and the command."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

SOON = 120_000  # milliseconds; a slow machine may take them, a quick one does not
EIGHT = 8  # experts of the starter zoo
MERGED = (0, 2)  # places of digits and clothes among them


def number(page: Page, field: str, value: int) -> None:
    box = page.locator(f"{field} input[type=number]")
    box.fill(str(value))
    box.press("Enter")


def merge_two(page: Page) -> None:
    """Leave only two experts in the merge."""
    for place in range(EIGHT):
        if place not in MERGED:
            page.locator(f"#expert-{place}-on input").uncheck()


def test_features_are_calibrated_on_ten_images(open_page):
    page = open_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    merge_two(page)
    expect(page.locator("#status")).to_contain_text("2 of 8", timeout=SOON)

    expect(page.locator("#calibration-run")).to_be_hidden()
    page.locator("#calibration button").first.click()
    expect(page.locator("#calibration-lead")).to_contain_text("needs unlabelled images")
    expect(page.locator("#calibration-cost")).to_contain_text("2 tasks, 256 images in all", timeout=SOON)
    number(page, "#calibration-examples", 10)
    expect(page.locator("#calibration-cost")).to_contain_text("2 tasks, 20 images in all", timeout=SOON)
    page.locator("#calibration-run").click()
    expect(page.locator("#calibration-status")).to_contain_text("Features of encoder.layer", timeout=SOON)
    page.locator("#calibration-stop").click()
    expect(page.locator("#calibration-status")).to_contain_text("Stopped. Nothing was kept.", timeout=SOON)
    expect(page.locator("#calibration-table")).to_be_hidden()
    page.locator("#calibration-run").click()
    expect(page.locator("#calibration-status")).to_contain_text("Calibrated and measured in", timeout=SOON)
    expect(page.locator("#calibration-status")).to_contain_text("10 unlabelled val pictures a task")
    page.wait_for_selector("#calibration-bars .barlayer .trace", timeout=SOON)
    expect(page.locator("#calibration-table tbody tr")).to_have_count(3)
    expect(page.locator("#calibration-sentence")).to_contain_text("of 2 tasks")
    expect(page.locator("#calibration-fitted")).to_contain_text("128 tensors of 8 blocks were fitted")
    expect(page.locator("#calibration-shell")).to_contain_text("calibrate merged --out calibrated --suite starter")

    # the table's column "Before" is what the page shows of the merge itself
    before = page.locator("#calibration-table tr", has_text="Clothes").locator("td").first.inner_text()
    expect(page.locator("#main-table tr", has_text="Clothes").locator("td").nth(2)).to_contain_text(before)

    number(page, "#parameter-lambda", 1)
    expect(page.locator("#calibration-status")).to_contain_text("The merge has changed since", timeout=SOON)
    assert said == [], "the console has errors"


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_looks_of_calibrated_features(open_page, shots, width, height, theme):
    """Screenshots of the section with its numbers; nothing is wider than the screen."""
    page = open_page(width, height, theme)
    merge_two(page)
    page.locator("#calibration button").first.click()
    number(page, "#calibration-examples", 10)
    page.locator("#calibration-split label", has_text="test").click()
    expect(page.locator("#calibration-lead")).to_contain_text("transductive", timeout=SOON)
    expect(page.locator("#calibration-cost")).to_contain_text("2 tasks, 20 images in all", timeout=SOON)
    page.locator("#calibration-run").click()
    page.wait_for_selector("#calibration-bars .barlayer .trace", timeout=SOON)
    page.wait_for_timeout(800)
    page.screenshot(path=shots / f"calibration-{width}-{theme}.png", full_page=True)
    above, below = (page.locator(place).bounding_box() for place in ("#main-table", "#calibration"))
    assert above and below and below["y"] > above["y"] + above["height"], "it is below what it starts from"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
