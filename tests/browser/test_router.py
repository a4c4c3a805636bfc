"""The Router tab in a real browser: build, move the rank, upload a picture, set weights by hand; no network."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

SOON = 120_000  # milliseconds; a slow machine may take them, a quick one does not
EXPERTS = 8


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def press(page: Page, selector: str, key: str, times: int = 1) -> None:
    slider = page.locator(f"{selector} input[type=range]")
    slider.focus()
    for _ in range(times):
        page.keyboard.press(key)


def built(page: Page) -> None:
    """A routed model by the keyboard's way: rank 1, the least to wait for."""
    tab(page, "Router")
    expect(page.locator("#router-shared")).to_contain_text("Shared model: Task arithmetic", timeout=SOON)
    expect(page.locator("#router-cost")).to_contain_text("8 experts: about", timeout=SOON)
    page.locator("#router-preset input").click()
    page.get_by_role("option", name="rank1").click()
    expect(page.locator("#router-keep-rank")).to_be_visible(timeout=SOON)
    page.locator("#router-build").click()
    expect(page.locator("#router-table")).to_contain_text("Mean, seen", timeout=SOON)


def seen(page: Page) -> list[str]:
    """The numbers of the row of means."""
    row = page.locator("#router-table tr", has_text="Mean, seen").inner_text()
    return re.findall(r"\d+\.\d+", row)


def test_a_routed_model_is_built_looked_at_and_set_by_hand(open_page, tmp_path):
    from PIL import Image

    page = open_page()
    built(page)
    expect(page.locator("#router-status")).to_contain_text("Built in")
    expect(page.locator("#router-badges")).to_contain_text("not told the task")
    expect(page.locator("#router-badges")).to_contain_text("no class labels")
    page.wait_for_selector("#router-weights .heatmaplayer", timeout=SOON)
    page.wait_for_selector("#router-confusion .heatmaplayer", timeout=SOON)
    expect(page.locator("#router-weights-table tbody tr")).to_have_count(EXPERTS)
    expect(page.locator("#router-sentence")).to_contain_text("static merge that is told the task")
    static, _, routed, _ = map(float, seen(page))
    assert routed > static, "routing over eight experts is better than merging them into one"

    # the oracle is never shown without its label
    page.locator("#router-head input").click()
    page.get_by_role("option", name=re.compile("^Oracle")).click()
    expect(page.locator("#router-badges .ml-loud")).to_contain_text("oracle head: told the task", timeout=SOON)
    expect(page.locator("#router-table")).to_contain_text("the routed model is told the task", timeout=SOON)
    assert float(seen(page)[2]) >= routed

    # the curve is computed once, then the slider answers
    tab(page, "Rank")
    expect(page.locator("#router-rank-status")).to_contain_text("Computed once", timeout=SOON)
    expect(page.locator("#router-rank-sentence")).to_contain_text("At rank 1 ")
    small = page.locator("#router-rank-sentence").inner_text()
    press(page, "#router-rank", "ArrowRight", 3)
    expect(page.locator("#router-rank-sentence")).to_contain_text("At rank 8 ", timeout=10_000)
    expect(page.locator("#router-rank-tasks")).to_contain_text("Rank 8")
    sizes = [
        float(re.search(r"([\d.]+) MB", t)[1]) for t in (small, page.locator("#router-rank-sentence").inner_text())
    ]
    assert sizes[0] < sizes[1]
    press(page, "#router-rank", "Home")
    expect(page.locator("#router-rank-sentence")).to_contain_text("At rank 0 ", timeout=10_000)

    # a picture from a file
    tab(page, "One picture")
    expect(page.locator("#router-look-sentence")).to_contain_text("routed says", timeout=SOON)
    page.get_by_role("tab", name="Upload", exact=True).last.click()
    not_a_picture = tmp_path / "note.txt"
    not_a_picture.write_text("hello")
    page.locator("#router-upload input[type=file]").set_input_files(not_a_picture)
    expect(page.locator("#router-look-status")).to_contain_text("not a picture", timeout=SOON)
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    page.locator("#router-upload button[aria-label='Clear']").first.click()
    page.locator("#router-upload input[type=file]").set_input_files(path)
    expect(page.locator("#router-picture")).to_contain_text("Your picture", timeout=SOON)

    # weights by hand
    page.locator("#router-hand-zero").click()
    expect(page.locator("#router-look-table")).to_contain_text("By hand", timeout=SOON)
    expect(page.locator("#router-hand-note")).to_contain_text("Set by hand")
    before = page.locator("#router-look-sentence").inner_text()
    press(page, "#router-hand-2", "End")
    expect(page.locator("#router-look-table tr", has_text="Sum")).to_contain_text("1.000", timeout=SOON)
    expect(page.locator("#router-look-sentence")).not_to_have_text(before, timeout=SOON)
    page.locator("#router-hand-router").click()
    expect(page.locator("#router-look-table")).not_to_contain_text("By hand", timeout=SOON)

    # a batch of all tasks, in groups
    tab(page, "Mixed batch")
    expect(page.locator("#router-batch-sentence")).to_contain_text("are led to their own expert", timeout=SOON)
    assert page.locator("#router-batch img").count() == 24
    expect(page.locator("#router-batch-table tbody tr")).to_have_count(24)

    # beside the other results
    tab(page, "Routing")
    page.locator("#router-show").click()
    expect(page.locator("#router-shown")).to_contain_text("on the Results tab", timeout=SOON)
    tab(page, "Results")
    expect(page.locator("#models-table")).to_contain_text("Twin-Merging, rank 1", timeout=SOON)
    expect(page.locator("#models-table")).to_contain_text("oracle head: told the task", timeout=SOON)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_looks_of_the_router(open_page, shots, width, height, theme):
    """Screenshots of every part of the tab; nothing is wider than the screen."""
    page = open_page(width, height, theme)
    tab(page, "Router")
    expect(page.locator("#router-cost")).to_contain_text("8 experts: about", timeout=SOON)
    page.screenshot(path=shots / f"router-first-{width}-{theme}.png", full_page=True)
    built(page)
    waits = {"Routing": "#router-confusion .heatmaplayer", "Rank": "#router-rank-figure .bars",
             "One picture": "#router-look-classes .bars", "Mixed batch": "#router-batch img",
             "Storage and time": "#router-storage .scatterlayer"}  # fmt: skip
    for name, drawn in waits.items():
        tab(page, name)
        page.wait_for_selector(drawn, timeout=SOON)
        if name == "Storage and time":
            page.locator("#router-time").click()
            page.wait_for_selector("#router-latency .scatterlayer", timeout=SOON)
        page.wait_for_timeout(600)
        stem = f"router-{name.lower().replace(' ', '-')}-{width}-{theme}"
        page.screenshot(path=shots / f"{stem}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{stem} scrolls sideways"
