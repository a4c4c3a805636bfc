"""The Train tab in a real browser: a short run is watched, paused, found again and gone on with; no network."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

SOON = 300_000  # milliseconds; a slow machine may take them, a quick one does not
TRAINING = Path(__file__).parents[2] / "assets" / "training"
RECORDED = sorted(TRAINING.glob("*.json"))
LOOKED = [path for path in RECORDED if (TRAINING / "looks" / path.name).is_file()]
LABS = sorted((TRAINING / "theorem").glob("*.json"))


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def press(page: Page, selector: str, key: str) -> None:
    page.locator(f"{selector} input[type=range]").focus()
    page.keyboard.press(key)


def number(page: Page, field: str, value: int) -> None:
    box = page.locator(f"{field} input[type=number]").first
    box.fill(str(value))
    box.press("Enter")


def points(page: Page, series: str = "ATM") -> int:
    """How many points a line of the figure has."""
    return page.evaluate(
        "name => (document.querySelector('#train-curves .js-plotly-plot')?.data || [])"
        ".filter(t => t.name === name).map(t => t.y.length)[0] || 0",
        series,
    )


def until_points(page: Page, count: int, series: str = "ATM") -> None:
    page.wait_for_function(
        "([name, count]) => (document.querySelector('#train-curves .js-plotly-plot')?.data || [])"
        ".some(t => t.name === name && t.y.length >= count)",
        arg=[series, count], timeout=SOON,
    )  # fmt: skip


def short_run(page: Page, pictures: int) -> None:
    """Three tasks, two rounds, few pictures; what it would cost is said first."""
    tab(page, "Train")
    expect(page.locator("#train-tasks input:checked")).to_have_count(3)
    number(page, "#train-images", pictures)
    passes = f"{2 * 3 * 2 * pictures:,} pictures pass"  # two runs, three tasks, two epochs
    expect(page.locator("#train-cost")).to_contain_text(passes, timeout=SOON)


def test_a_short_run_is_watched_paused_and_gone_on_with(open_page):
    page = open_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    short_run(page, 32)
    expect(page.locator("#train-data")).to_contain_text("needs labelled training images")
    expect(page.locator("#train-cost")).to_contain_text(re.compile(r"about \d+ (s|min) here"))

    # how often is merged: from joint training to one shot, the budget stays
    press(page, "#train-every", "Home")
    expect(page.locator("#train-every")).to_contain_text("Merge every step: 4 rounds", timeout=SOON)
    expect(page.locator("#train-note")).to_contain_text("FedAvg (local SGD) with every client taking part")
    press(page, "#train-every", "End")
    expect(page.locator("#train-every")).to_contain_text("Merge once, at the end: 2 epochs", timeout=SOON)
    expect(page.locator("#train-rounds input")).to_have_value("1", timeout=SOON)
    number(page, "#train-rounds", 2)
    expect(page.locator("#train-every")).to_contain_text("Merge every 2 epochs: 2 rounds", timeout=SOON)
    number(page, "#train-length", 1)
    expect(page.locator("#train-every")).to_contain_text("Merge every epoch: 2 rounds", timeout=SOON)
    expect(page.locator("#train-cost")).to_contain_text("384 pictures pass", timeout=SOON)

    # another method merges the rounds, with its own parameters
    page.locator("#train-method input").click()
    page.get_by_role("option", name="TIES-Merging", exact=True).click()
    density = page.locator("#train-parameter-density input[type=number]")
    density.fill("0.4", timeout=SOON)
    density.press("Enter")
    expect(page.locator("#train-more-parameters")).to_contain_text("More parameters (4)")

    # the curve moves, and is paused after its first round
    page.locator("#train-go").click()
    until_points(page, 2)
    page.locator("#train-pause").click()
    expect(page.locator("#train-status")).to_contain_text("which are kept; resume goes on", timeout=SOON)
    expect(page.locator("#train-resume")).to_be_enabled()
    expect(page.locator("#train-sentence")).to_contain_text("After 1 epoch a task, ATM:")

    # whoever comes back finds it
    page.reload()
    page.wait_for_selector("#radar .scatterlayer .trace", timeout=SOON)
    said.clear()  # what was under way when the page closed was cut off
    tab(page, "Train")
    expect(page.locator("#train-status")).to_contain_text("which are kept; resume goes on", timeout=SOON)
    until_points(page, 2)
    page.locator("#train-resume").click()
    expect(page.locator("#train-status")).to_contain_text("Done: 2 of 2 rounds", timeout=SOON)
    until_points(page, 3)
    until_points(page, 3, "joint training")
    expect(page.locator("#train-place")).to_contain_text("Round 2 of 2")
    expect(page.locator("#train-table tbody tr")).to_have_count(4)
    expect(page.locator("#train-whole")).to_contain_text("ATM, 2 rounds")
    last = page.locator("#train-table").inner_text()
    link = page.locator("#train-files a[download$='.yaml']").get_attribute("href")
    recipe = base64.b64decode(link.partition(",")[2]).decode()
    assert "suite: starter\n" in recipe and "merge_method: ties" in recipe and "density: 0.4" in recipe

    # through the rounds
    press(page, "#train-place", "ArrowLeft")
    expect(page.locator("#train-place")).to_contain_text("Round 1 of 2", timeout=SOON)
    expect(page.locator("#train-facts")).to_contain_text("Round 1: what training each task was like")
    expect(page.locator("#train-table")).not_to_have_text(last)
    page.wait_for_selector("#train-cosines .heatmaplayer", timeout=SOON)
    expect(page.locator("#train-cosine-table tbody tr")).to_have_count(3)

    # the other tabs have the model
    tab(page, "Results")
    expect(page.locator("#compare")).to_contain_text("ATM, round 2", timeout=SOON)
    expect(page.locator("#models-table")).to_contain_text("ATM, round 2", timeout=SOON)
    tab(page, "Predict")
    expect(page.locator("#predict-sentence")).to_contain_text("training, round 2 says", timeout=SOON)
    expect(page.locator("#predict-table")).to_contain_text("Training, round 2")
    tab(page, "Geometry")
    expect(page.locator("#geometry-training-heading")).to_contain_text("Task vectors of training, round 2")
    expect(page.locator("#training-cosine-table tbody tr")).to_have_count(3)
    assert said == [], "the console has errors"


def test_what_cannot_be_is_said_and_a_run_can_be_stopped(open_page):
    page = open_page()
    tab(page, "Train")
    for place in range(3):
        page.locator("#train-tasks label").nth(place).click()
    expect(page.locator("#train-cost")).to_contain_text("at least one task", timeout=SOON)
    page.locator("#train-go").click()
    expect(page.locator("#train-status")).to_contain_text("Choose at least one task", timeout=SOON)
    page.locator("#train-tasks label").first.click()
    page.locator("#train-tasks label").nth(1).click()
    page.locator("#train-go").click()
    expect(page.locator("#train-stop")).to_be_enabled(timeout=SOON)
    page.locator("#train-stop").click()
    expect(page.locator("#train-status")).to_contain_text("Stopped.", timeout=SOON)
    expect(page.locator("#train-go")).to_be_enabled(timeout=SOON)
    expect(page.locator("#train-resume")).to_be_disabled()


@pytest.mark.skipif(not RECORDED, reason="no recorded run is shipped")
def test_a_recorded_run_opens_at_once(open_page):
    page = open_page()
    tab(page, "Train")
    page.locator("#train-open").click()
    expect(page.locator("#train-status")).to_contain_text("Recorded:", timeout=SOON)
    until_points(page, 11)  # before the first round, and after each of ten
    rows = page.locator("#train-whole tbody tr").count()
    assert rows > 4, "the whole comparison is there"
    before = page.locator("#train-sentence").inner_text()
    press(page, "#train-place", "Home")
    expect(page.locator("#train-sentence")).to_contain_text("Before the first round", timeout=SOON)
    press(page, "#train-place", "End")
    expect(page.locator("#train-sentence")).to_have_text(before, timeout=SOON)


def unfold(page: Page, accordion: str) -> None:
    page.locator(f"{accordion} button.label-wrap").first.click()


@pytest.mark.skipif(not LOOKED or LOOKED[0] != RECORDED[0], reason="no look is recorded with the first recorded run")
def test_a_recorded_run_has_its_landscape(open_page):
    page = open_page()
    tab(page, "Train")
    page.locator("#train-open").click()
    expect(page.locator("#train-status")).to_contain_text("Recorded:", timeout=SOON)
    unfold(page, "#train-look")
    expect(page.locator("#train-look-status")).to_contain_text("Recorded with the run", timeout=SOON)
    page.wait_for_selector("#look-land .contourlayer", state="attached", timeout=SOON)
    expect(page.locator("#look-land-sentence")).to_contain_text("On the plane through")
    expect(page.locator("#look-land-table tbody tr").first).to_be_visible()


@pytest.mark.skipif(not LABS, reason="no theorem lab is recorded")
def test_the_theorem_lab_has_its_table(open_page):
    page = open_page(390, 844)
    tab(page, "Train")
    unfold(page, "#train-theorem")
    expect(page.locator("#theorem-sentence")).to_contain_text("to a relative error of", timeout=SOON)
    assert page.locator("#theorem-table tbody tr").count() > 4
    page.wait_for_selector("#theorem-errors .scatterlayer .trace", state="attached", timeout=SOON)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    if len(LABS) > 1:
        before = page.locator("#theorem-table").inner_text()
        page.locator("#theorem-of label").nth(1).click()
        expect(page.locator("#theorem-table")).not_to_have_text(before, timeout=SOON)
        expect(page.locator("#theorem-table")).to_contain_text("GD, full batch")


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_looks_of_training(open_page, shots, width, height, theme):
    """Screenshots before a run, after one, and of the recorded one; nothing is wider than the screen."""
    page = open_page(width, height, theme)

    def shoot(name: str) -> None:
        page.wait_for_timeout(800)
        page.screenshot(path=shots / f"train-{name}-{width}-{theme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} scrolls sideways"

    short_run(page, 16)
    shoot("first")
    page.locator("#train-go").click()
    expect(page.locator("#train-status")).to_contain_text("Done: 2 of 2 rounds", timeout=SOON)
    page.wait_for_selector("#train-cosines .heatmaplayer", timeout=SOON)
    shoot("run")
    if RECORDED:
        page.locator("#train-open").click()
        expect(page.locator("#train-status")).to_contain_text("Recorded:", timeout=SOON)
        page.wait_for_selector("#train-whole tbody tr", timeout=SOON)
        shoot("recorded")
    tab(page, "Predict")
    expect(page.locator("#predict-table")).to_contain_text("Training, round 2", timeout=SOON)
    shoot("predict")
