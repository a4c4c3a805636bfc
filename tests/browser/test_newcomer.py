"""A newcomer goes through the five tabs, with no network."""

from __future__ import annotations

import base64
import re

import pytest
from playwright.sync_api import Page, expect

EIGHT = 8  # experts of the starter zoo
SOON = 60_000  # milliseconds; a slow machine may take them, a quick one does not


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def numbers(page: Page) -> list[str]:
    return re.findall(r"\d+\.\d", page.locator("#main-table tbody").inner_text())


def measured(page: Page, words: str) -> None:
    expect(page.locator("#status")).to_contain_text(words, timeout=SOON)


def move(page: Page, times: int) -> None:
    """Press the right arrow on the coefficient's slider and wait for the first numbers of that value."""
    slider = page.locator("#parameter-lambda input[type=range]")
    slider.focus()
    for _ in range(times):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#status")).to_contain_text(
        re.compile(rf"λ={float(slider.input_value()):g}: .* on 40 test images a task"), timeout=SOON
    )


def test_first_screen_has_radar_table_and_prediction(open_page):
    page = open_page()
    rows = page.locator("#main-table tbody tr")
    assert rows.count() >= EIGHT + 1
    assert page.locator("#radar .scatterlayer .trace").count() == 3
    expect(page.locator("#live-picture img")).to_be_visible()
    expect(page.locator("#live-sentence")).to_contain_text("expert says")
    expect(page.locator("#sentence")).to_contain_text("One model now keeps")
    expect(page.locator("#parameter-lambda input[type=range]")).to_be_visible()
    for selector in ("#radar", "#main-table", "#live-picture img", "#parameter-lambda", "#live-plot"):
        box = page.locator(selector).bounding_box()
        assert box["y"] < 800, f"{selector} starts below the first screen"


def test_a_slider_moves_the_numbers_everywhere(open_page):
    page = open_page()
    measured(page, "Task arithmetic")
    before, said = numbers(page), page.locator("#sentence").inner_text()
    slider = page.locator("#parameter-lambda input[type=range]")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    page.mouse.up()
    expect(page.locator("#main-table")).to_contain_text("on 40 test images a task", timeout=SOON)
    measured(page, "untuned")
    value = slider.input_value()
    measured(page, f"λ={float(value):g}")
    assert numbers(page) != before and page.locator("#sentence").inner_text() != said
    expect(page.locator("#recipe-yaml")).to_contain_text(f"lambda: {float(value):g}")
    tab(page, "Results")
    expect(page.locator("#models-table")).to_contain_text(f"λ={float(value):g}")


def test_it_refines_on_the_whole_test_sets_and_stop_stops(open_page):
    page = open_page()
    move(page, 3)
    expect(page.locator("#status progress")).to_be_visible(timeout=SOON)
    page.locator("#stop").click()
    measured(page, "Stopped")
    move(page, 2)
    expect(page.locator("#main-table")).to_contain_text("on the whole test sets", timeout=120_000)
    expect(page.locator("#main-table")).to_contain_text("Mean, unseen")


def test_a_method_brings_its_own_controls(open_page):
    page = open_page()
    page.locator("#method input").click()
    page.get_by_role("option", name=re.compile("TIES-Merging")).click()
    expect(page.locator("#parameter-density")).to_be_visible(timeout=SOON)
    expect(page.locator("#recipe-yaml")).to_contain_text("merge_method: ties")
    measured(page, "TIES-Merging")
    page.locator("#method-formula-box > button").click()
    expect(page.locator("#method-formula .katex").first).to_be_visible()
    expect(page.locator("#method-about")).to_contain_text("needs no data")
    page.locator("#expert-0-on input").uncheck()
    measured(page, f"{EIGHT - 1} of {EIGHT}")


def test_a_recipe_can_be_read_saved_and_opened(open_page, tmp_path):
    page = open_page()
    link = page.locator("#recipe-files a", has_text="Save as YAML")
    with page.expect_download() as waiting:
        link.click()
    path = tmp_path / "recipe.yaml"
    waiting.value.save_as(path)
    text = path.read_text()
    assert "merge_method: task_arithmetic" in text and "zoo:starter/mnist" in text
    page.locator("#open-recipe > button").click()
    page.locator("#recipe-text textarea").fill(re.sub(r"lambda: [\d.]+", "lambda: 0.55", text))
    page.locator("#recipe-open").click()
    expect(page.locator("#parameter-lambda input[type=range]")).to_have_value("0.55", timeout=SOON)
    measured(page, "λ=0.55")
    page.locator("#recipe-text textarea").fill("merge_method: tise\nmodels: [zoo:starter/mnist]")
    page.locator("#recipe-open").click()
    expect(page.locator("#recipe-message")).to_contain_text("ties", timeout=SOON)


def test_results_are_kept_compared_and_cleared(open_page):
    page = open_page()
    tab(page, "Results")
    expect(page.locator("#results-radar .scatterlayer .trace")).to_have_count(3, timeout=SOON)
    page.locator("#keep").click()
    expect(page.locator("#compare")).to_contain_text("A: Task arithmetic", timeout=SOON)
    tab(page, "Merge")
    move(page, 4)
    tab(page, "Results")
    expect(page.locator("#results-radar .scatterlayer .trace")).to_have_count(4, timeout=SOON)
    expect(page.locator("#models-table")).to_contain_text("A: Task arithmetic")
    page.locator("#models-table th", has_text="accuracy").first.click()
    page.locator("#clear-kept").click()
    expect(page.locator("#results-radar .scatterlayer .trace")).to_have_count(3, timeout=SOON)


def test_geometry_draws_its_three_figures(open_page):
    page = open_page()
    tab(page, "Geometry")
    expect(page.locator("#geometry-status")).to_contain_text(f"{EIGHT} task vectors", timeout=SOON)
    expect(page.locator("#cosines .heatmaplayer image, #cosines .hm image").first).to_be_visible(timeout=SOON)
    expect(page.locator("#norms .scatterlayer .trace")).to_have_count(EIGHT, timeout=SOON)
    expect(page.locator("#conflict .scatterlayer .trace")).to_have_count(1, timeout=SOON)
    expect(page.locator("#cosine-sentence")).to_contain_text("Most alike are")
    whole = page.locator("#cosine-table tbody").inner_text()
    page.locator("#geometry-layer input").click()
    page.get_by_role("option", name=re.compile("block")).first.click()
    expect(page.locator("#cosine-table caption")).to_contain_text("block", timeout=SOON)
    assert page.locator("#cosine-table tbody").inner_text() != whole


def test_predict_a_sample_an_upload_and_what_is_no_picture(open_page, tmp_path):
    page = open_page()
    tab(page, "Predict")
    samples = page.locator("#samples button.thumbnail-item, #samples button.gallery-item")
    expect(samples.first).to_be_visible(timeout=SOON)
    before = page.locator("#predict-picture img").get_attribute("src")
    samples.nth(3).click()
    expect(page.locator("#predict-picture img")).not_to_have_attribute("src", before, timeout=SOON)
    expect(page.locator("#predict-table")).to_contain_text("Merged")
    expect(page.locator("#predict-sentence")).to_contain_text("merged says")
    page.get_by_role("tab", name="Upload", exact=True).click()
    bad = tmp_path / "notes.png"
    bad.write_text("this is not a picture")
    page.locator("#upload input[type=file]").set_input_files(str(bad))
    expect(page.locator("#predict-status")).to_contain_text("not a picture", timeout=SOON)
    assert "Traceback" not in page.locator("body").inner_text()
    good = tmp_path / "dot.png"
    good.write_bytes(
        base64.b64decode(
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
        )
    )
    page.locator("#upload button[aria-label='Clear'], #upload button[aria-label='Remove this file']").first.click()
    page.locator("#upload input[type=file]").set_input_files(str(good))
    expect(page.locator("#predict-picture")).to_contain_text("Your picture", timeout=SOON)
    expect(page.locator("#predict-status")).not_to_contain_text("not a picture")


def test_predict_a_drawing(open_page):
    page = open_page()
    tab(page, "Predict")
    page.get_by_role("tab", name="Draw", exact=True).click()
    pad = page.locator("#pad canvas")
    expect(pad).to_be_visible(timeout=SOON)
    page.locator("#read-drawing").click()
    expect(page.locator("#predict-status")).to_contain_text("The drawing is empty", timeout=SOON)
    box = pad.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 40, steps=8)
    page.mouse.up()
    page.locator("#read-drawing").click()
    expect(page.locator("#predict-picture")).to_contain_text("Your picture", timeout=SOON)
    expect(page.locator("#predict-sentence")).to_contain_text("merged says", timeout=SOON)


def test_models_are_checked_in_words_and_a_wrong_path_gets_a_sentence(open_page):
    page = open_page()
    tab(page, "Models")
    expect(page.locator("#models-card")).to_contain_text("zoo:starter/mnist")
    page.locator("#use-zoo").click()
    expect(page.locator("#preflight li").first).to_be_visible(timeout=SOON)
    page.get_by_role("tab", name="This machine", exact=True).click()
    page.locator("#local-base textarea, #local-base input").fill("/no/such/base")
    page.locator("#local-experts textarea").fill("/no/such/expert")
    page.locator("#use-local").click()
    expect(page.locator("#models-status")).to_contain_text(re.compile("no|not|cannot"), timeout=SOON)
    assert "Traceback" not in page.locator("body").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_looks(open_page, shots, width, height, theme):
    """Screenshots of every tab; nothing is wider than the screen."""
    page = open_page(width, height, theme)
    for name in ("Merge", "Models", "Results", "Geometry", "Predict"):
        tab(page, name)
        if name == "Geometry":
            expect(page.locator("#geometry-status")).to_contain_text("task vectors over", timeout=SOON)
            page.wait_for_selector("#conflict .scatterlayer .trace", timeout=SOON)
        if name == "Results":
            page.wait_for_selector("#results-bars .bars", timeout=SOON)
        if name == "Predict":
            page.wait_for_selector("#predict-plot .bars", timeout=SOON)
            page.wait_for_selector("#samples img", timeout=SOON)
        page.wait_for_timeout(400)
        stem = f"{name.lower()}-{width}-{theme}"
        page.screenshot(path=shots / f"{stem}.png")
        page.screenshot(path=shots / f"{stem}-full.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{stem} scrolls sideways"
        dark = page.evaluate("document.body.classList.contains('dark')")
        assert dark == (theme == "dark")
