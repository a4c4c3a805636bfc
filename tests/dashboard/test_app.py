"""The page as a whole: what it is made of, what it lets programs do, and what it never does."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from mergelab.dashboard.app import build_app, launch_options
from mergelab.dashboard.lab import Lab
from mergelab.dashboard.settings import Settings
from mergelab.errors import MergeLabError
from mergelab.recipe import Recipe

PUBLIC = {
    "/methods", "/preflight", "/merge_evaluate", "/predict", "/geometry",
    "/twin_build", "/twin_evaluate", "/twin_predict", "/collect_statistics", "/solve_path", "/learn", "/surgery",
    "/calibrate",
}  # fmt: skip


def test_every_elem_id_is_there_once(demo):
    ids = Counter(c["props"].get("elem_id") for c in demo.config["components"] if c["props"].get("elem_id"))
    assert [name for name, count in ids.items() if count > 1] == []
    assert {"method", "radar", "main-table", "live-plot", "stop", "keep", "cosines", "samples", "upload"} <= set(ids)


def test_controls_have_labels(demo):
    for component in demo.config["components"]:
        if component["type"] in ("dropdown", "textbox", "slider", "radio", "checkboxgroup", "file", "plot", "gallery"):
            assert component["props"].get("label"), component


def test_only_the_verbs_are_public(demo):
    shown = {
        "/" + str(d["api_name"])
        for d in demo.config["dependencies"]
        if d["api_visibility"] == "public" and d["api_name"]
    }
    assert shown == PUBLIC


def test_heavy_events_share_one_place(demo):
    compute = [fn for fn in demo.fns.values() if fn.concurrency_id == "compute"]
    assert len(compute) >= 5
    assert {fn.concurrency_limit for fn in compute} == {1}


def test_first_screen_is_complete_before_anything_is_computed(demo):
    by_id = {c["props"].get("elem_id"): c["props"] for c in demo.config["components"]}
    assert "merged" in by_id["radar"]["value"]["plot"]
    assert "MNIST" in by_id["main-table"]["value"]
    assert "tuned on validation" in by_id["status"]["value"]
    assert "merge_method: task_arithmetic" in by_id["recipe-yaml"]["value"]


def test_components_can_be_looked_through_while_more_are_drawn(demo):
    import copy

    table = copy.copy(demo.default_config).blocks  # what a visitor gets
    assert table.keys() == list(demo.default_config.blocks) and table is not demo.default_config.blocks
    size = len(table)
    for place, component in enumerate(table.values()):
        table[-1 - place] = component
    for key in table:
        table.pop(key) if key < 0 else None
    assert len(table) == size


def test_launch_shares_nothing(settings):
    options = launch_options(settings)
    assert options["allowed_paths"] == [] and options["share"] is False and options["show_error"] is False
    assert options["run_history"] is False and options["enable_monitoring"] is False and options["strict_cors"] is True
    assert options["max_file_size"] == "5mb" and options["server_name"] == "127.0.0.1"


def test_settings_from_the_environment():
    found = Settings.from_env({"SPACE_ID": "org/space", "GRADIO_SERVER_PORT": "8001", "MERGELAB_PER_TASK": "20"})
    assert found.public and found.server_port == 8001 and found.per_task == 20
    assert not Settings.from_env({}).public
    with pytest.raises(MergeLabError, match="GRADIO_SERVER_PORT"):
        Settings.from_env({"GRADIO_SERVER_PORT": "http"})


def test_a_public_page_names_no_path_of_its_machine(settings):
    lab = Lab(Settings(public=True))
    lab.check_sources(Recipe("linear", ("zoo:starter/mnist", "hub:org/name")))
    for source in ("/etc/passwd", "../secret", "file.safetensors"):
        with pytest.raises(MergeLabError, match="public"):
            lab.check_sources(Recipe("linear", (source,)))
    with pytest.raises(MergeLabError, match="at most 12"):
        lab.check_sources(Recipe("linear", tuple(f"zoo:starter/t{i}" for i in range(13))))


def test_settings_and_the_package_load_neither_gradio_nor_torch():
    code = "import sys; import mergelab.dashboard.settings; print([m for m in ('gradio', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


def test_a_zoo_without_a_shipped_measurement_still_opens(settings):
    from dashboard.fake_lab import FakeLab

    class Bare(FakeLab):
        def first_screen(self):
            return None

    page = build_app(Bare(settings), settings)
    by_id = {c["props"].get("elem_id"): c["props"] for c in page.config["components"]}
    assert by_id["radar"].get("value") is None and "Ready" in by_id["status"]["value"]
