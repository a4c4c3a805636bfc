"""Methods that need data in a real browser: collect on ten images, solve a short path, move through its snapshots."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

SOON = 120_000  # milliseconds; a slow machine may take them, a quick one does not
MERGED = ("Handwritten digits", "Clothes")


def choose(page: Page, name: str) -> None:
    """A method, and only the two tasks that these tests merge."""
    page.locator("#method input").click()
    page.get_by_role("option", name=re.compile(f"^{name}")).click()
    expect(page.locator("#data-collect")).to_be_visible(timeout=SOON)
    expect(page.locator("#data-tasks input:checked")).to_have_count(8, timeout=SOON)
    for label in page.locator("#data-tasks label").all():
        if label.inner_text().strip() not in MERGED:
            label.click()
    expect(page.locator("#data-tasks input:checked")).to_have_count(2)


def number(page: Page, field: str, value: int) -> None:
    box = page.locator(f"{field} input[type=number]")
    box.fill(str(value))
    box.press("Enter")


def collect(page: Page, examples: int = 10) -> None:
    number(page, "#data-examples", examples)
    expect(page.locator("#data-cost")).to_contain_text("2 tasks, 10 images each", timeout=SOON)
    expect(page.locator("#data-cost")).to_contain_text("MB of disk and about")
    page.locator("#data-collect").click()
    expect(page.locator("#data-status")).to_contain_text("In use: 10 ", timeout=SOON)


def shown(page: Page) -> dict[str, str]:
    """What the snapshot slider moves: the radar's own trace, the table, the prediction's bars, the recipe."""
    radar, bars = (
        page.evaluate(
            "([id, name]) => JSON.stringify(document.querySelector(id).data.filter(t => t.name === name)"
            ".map(t => t.r || t.x))",
            [f"{place} .js-plotly-plot", "merged"],
        )
        for place in ("#radar", "#live-plot")
    )
    table = page.locator("#main-table tr", has_text="Clothes").inner_text()
    return {"radar": radar, "table": table, "prediction": bars, "means": page.locator("#main-table").inner_text()}


def test_the_slider_moves_the_merged_model_through_the_snapshots(open_page):
    page = open_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    choose(page, "MaTS")
    expect(page.locator("#method-about")).to_contain_text("needs labelled images")
    expect(page.locator("#status")).to_contain_text("needs statistics of every task first", timeout=SOON)
    number(page, "#parameter-iterations", 0)  # the path below solves; once is enough
    collect(page)
    expect(page.locator("#status")).to_contain_text("MaTS iterations=0, 2 of 8", timeout=SOON)
    expect(page.locator("#recipe-yaml")).to_contain_text("init")
    expect(page.locator("#path-cost")).to_contain_text("One pass of 10 iterations")

    page.locator("#path-solve").click()
    expect(page.locator("#path-status")).to_contain_text("the snapshots are at hand", timeout=SOON)
    page.wait_for_selector("#path-figure .scatterlayer .trace", timeout=SOON)
    expect(page.locator("#path-table tbody tr")).to_have_count(3)
    expect(page.locator("#path-table")).to_contain_text("★")
    expect(page.locator("#path-sentence")).to_contain_text("J falls all the way")
    expect(page.locator("#path-place")).to_contain_text("chosen on validation")

    slider = page.locator("#path-place input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#path-sentence")).to_contain_text("Shown: no iterations (the init)", timeout=SOON)
    expect(page.locator("#status")).to_contain_text("MaTS iterations=0", timeout=SOON)
    start = shown(page)
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator("#path-sentence")).to_contain_text("Shown: 10 iterations", timeout=SOON)
    expect(page.locator("#status")).to_contain_text("MaTS iterations=10", timeout=SOON)
    page.wait_for_function(
        "old => JSON.stringify(document.querySelector('#live-plot .js-plotly-plot').data"
        ".filter(t => t.name === 'merged').map(t => t.r || t.x)) !== old",
        arg=start["prediction"], timeout=SOON,
    )  # fmt: skip
    end = shown(page)
    assert {key for key in start if start[key] == end[key]} <= {"table"}, "radar, table and prediction follow"

    page.locator("#blocks button").first.click()
    expect(page.locator("#blocks-status")).to_contain_text("After 10 iterations")
    page.wait_for_selector("#blocks-figure .heatmaplayer", timeout=SOON)
    expect(page.locator("#blocks-left")).to_contain_text("all experts have the same")

    # what was collected is kept: another method finds its part of it
    page.locator("#method input").click()
    page.get_by_role("option", name=re.compile(r"^RegMean \(")).click()
    expect(page.locator("#data-cost")).to_contain_text("Nothing will be collected again", timeout=SOON)
    expect(page.locator("#status")).to_contain_text("RegMean, 2 of 8", timeout=SOON)
    expect(page.locator("#path-solve")).to_be_hidden()
    assert said == [], "the console has errors"


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_looks_of_methods_that_need_data(open_page, shots, width, height, theme):
    """Screenshots of the path, the blocks, learned coefficients and Surgery; nothing is wider than the screen."""
    page = open_page(width, height, theme)

    def shoot(name: str) -> None:
        page.wait_for_timeout(800)
        page.screenshot(path=shots / f"data-{name}-{width}-{theme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} scrolls sideways"

    choose(page, "MaTS")
    shoot("panel")
    number(page, "#data-examples", 10)
    page.locator("#data-collect").click()
    expect(page.locator("#data-status")).to_contain_text("In use: 10 ", timeout=SOON)
    expect(page.locator("#status")).to_contain_text("MaTS iterations=10, 2 of 8", timeout=SOON)
    page.locator("#path-solve").click()
    expect(page.locator("#path-status")).to_contain_text("the snapshots are at hand", timeout=SOON)
    page.locator("#blocks button").first.click()
    page.wait_for_selector("#blocks-figure .heatmaplayer", timeout=SOON)
    shoot("path")
    choose_again(page)
    number(page, "#parameter-steps", 8)
    number(page, "#data-examples", 20)
    expect(page.locator("#data-cost")).to_contain_text("8 steps", timeout=SOON)
    page.locator("#data-collect").click()
    expect(page.locator("#learned-status")).to_contain_text("Learned per layer", timeout=SOON)
    page.wait_for_selector("#learned-map .heatmaplayer", timeout=SOON)
    page.locator("#surgery button").first.click()
    number(page, "#surgery-examples", 40)
    page.locator("#surgery-fit").click()
    page.wait_for_selector("#surgery-clouds .scatterlayer", timeout=SOON)
    shoot("learned")


def choose_again(page: Page) -> None:
    page.locator("#method input").click()
    page.get_by_role("option", name=re.compile("^AdaMerging")).click()
    expect(page.locator("#parameter-steps")).to_be_visible(timeout=SOON)
    expect(page.locator("#data-cost")).to_contain_text("100 steps", timeout=SOON)
