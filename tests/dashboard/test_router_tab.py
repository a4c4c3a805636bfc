"""The Router tab: what it shows follows from the routed bench's answers, and a program can ask for the same."""

from __future__ import annotations

import json
import re

import pytest
from dashboard.fake_lab import TASKS, FakeLab

from mergelab.dashboard import router_looks, router_views, router_work
from mergelab.errors import MergeLabError
from mergelab.recipe import Recipe
from mergelab.routing.recipe import TwinRecipe

SELECTION = {
    "title": "Starter", "zoo": "starter", "base": "zoo:starter/base", "suite": "starter",
    "experts": {name: f"zoo:starter/{name}" for name in TASKS}, "tuned": {},
}  # fmt: skip
SHARED = Recipe("task_arithmetic", tuple(SELECTION["experts"].values()), base_model="zoo:starter/base",
                parameters={"lambda": 0.4}, suite="starter")  # fmt: skip
OPTIONS = {**router_work.preset_options("default"), "policy": "rank", "rank": 4}


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


@pytest.fixture
def small_lab(settings):
    return FakeLab(settings)


@pytest.fixture
def built(small_lab):
    return router_work.build(small_lab, SELECTION, SHARED, OPTIONS, "Task arithmetic", progress=None, stop=None)


def result(lab, built, head="router_argmax", mode="auto", per_task=40):
    return router_work.measure(lab, built, head, mode, per_task)


# ---- from the panel to the recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "value"), [("rank", 4), ("rank_ratio", 0.25), ("energy", 0.8)])
def test_the_panel_is_a_routed_recipe_over_the_merge_tabs_recipe(policy, value):
    options = {**OPTIONS, "policy": policy, policy: value, "temperature": 2.0, "top_k": 3, "threshold": 0.4}
    twin = TwinRecipe.from_dict(router_work.twin_of(SHARED, options))
    assert twin.shared.hash == SHARED.hash
    sizes = {name: getattr(twin.exclusive, name) for name in router_work.POLICIES}
    assert sizes == {**dict.fromkeys(router_work.POLICIES), policy: value}
    assert (twin.gate.temperature, twin.gate.top_k, twin.gate.threshold) == (2.0, 3, 0.4)


def test_zero_means_no_top_k_and_no_threshold():
    twin = TwinRecipe.from_dict(router_work.twin_of(SHARED, OPTIONS))
    assert twin.gate.top_k is None and twin.gate.threshold is None


@pytest.mark.parametrize("name", router_work.presets())
def test_a_preset_fills_the_panel_with_what_it_means(name):
    options = router_work.preset_options(name)
    data = {**SHARED.to_dict(), "preset": name}
    assert TwinRecipe.from_dict(router_work.twin_of(SHARED, options)).exclusive == TwinRecipe.from_dict(data).exclusive
    assert options["head"] == TwinRecipe.from_dict(data).inference.head and options["text"]


def test_states_hold_plain_values(small_lab, built):
    json.dumps(built)
    json.dumps(result(small_lab, built))
    json.dumps(router_work.look(small_lab, built, {"task": "mnist", "place": 1}, "oracle", None))
    json.dumps(router_work.batch(small_lab, built, "max_logit", 0, 1))


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_the_head_policy_is_said_and_the_oracle_is_loud(small_lab, built):
    for head in router_views.HEADS:
        text = router_views.badges(built, result(small_lab, built, head)["evaluation"])
        assert ("oracle" in text) == (head == "oracle") == ("ml-loud" in text)
        assert ("not told the task" in text) == (head != "oracle")
        assert "task labels of 200 held-out pictures, no class labels" in text
        assert ("told the task" if head == "oracle" else "not told") in router_views.result_table(
            result(small_lab, built, head)
        )


def test_the_table_has_the_static_merge_the_expert_and_the_routed_model(small_lab, built):
    text = plain(router_views.result_table(result(small_lab, built)))
    row = text[text.index("MNIST") :].split()
    assert row[:5] == ["MNIST", "80.0", "90.0", "80.0", "70–90"]  # λ = 0.4: 0.9 - 0.1
    assert router_views.result_sentence(None) == ""
    assert "right on 80.0%" in router_views.result_sentence(result(small_lab, built))


def test_static_runs_with_uniform_weights_and_says_so(small_lab, built):
    found = result(small_lab, built, mode="static")
    assert small_lab.routed_bench.calls[-1][-1] == "uniform"
    assert "uniform weights, no router" in router_views.badges(built, found["evaluation"])


def test_maps_have_a_sentence_and_every_number_in_a_table(small_lab, built):
    found = result(small_lab, built)["evaluation"]
    figure, text, table = router_views.shares(found, "weights", TASKS)
    data = json.loads(figure.plot)["data"][0]
    assert len(data["z"]) == len(data["z"][0]) == len(TASKS) and data["zmax"] == 1
    assert "90% of the weight" in text and plain(table).count("0.90") == len(TASKS) and "Entropy" in table
    _, text, table = router_views.shares(found, "confusion", TASKS)
    assert "Most often mistaken: 3% of" in text and "Entropy" not in table
    assert "for 90.0% of the pictures" in router_views.split_line(found) and "85.0%" in router_views.split_line(found)


def test_rank_moves_accuracy_and_bytes_together(small_lab, built):
    curve = small_lab.routed(SELECTION).curve(router_work.parsed(built["twin"]))
    assert router_views.ranks_of(curve) == ["0", "1", "2", "4", "8", "all"]
    seen = []
    for place, given in ((0, 0), (3, 3), (5, 99)):
        figure, text, table, tasks = router_views.rank_view(curve, given, "oracle", TASKS, {"experts": 0.95})
        marks = next(t for t in json.loads(figure.plot)["data"] if t["name"] == "routed")["marker"]["symbol"]
        assert marks.index("diamond") == place and f"rank {router_views.ranks_of(curve)[place]} " in text
        assert f"<b>{100 * (0.5 + 0.08 * place):.1f}</b>" in tasks and "oracle" in plain(table).lower()
        seen.append(text)
    assert "50.0%" in seen[0] and "10.0 MB" in seen[0] and "74.0%" in seen[1] and "13.0 MB" in seen[1]


def test_costs_are_tables_too_and_say_what_was_left_out(small_lab, built):
    bench = small_lab.routed(SELECTION)
    _, text, table = router_views.storage_view(bench.storage(router_work.parsed(built["twin"])))
    assert "the routed model takes 2.0 MB; all experts kept takes 4.0 MB, static merge 1.0 MB" in text
    assert plain(table).count("4.0") == 1 and "static merge" in table
    _, text, table = router_views.latency_view(bench.latency(None))
    assert "With 1 picture at once adapter is quickest: 20.0 ms a picture, 2.0 times" in text
    assert "Measured here, now" in table and "group, 8 at once: one batch would take about 9.0 s" in table
    assert "about 1.9 MB in all; takes about 20 s" in router_views.cost_line(
        bench.estimate(router_work.parsed(built["twin"]))
    )


def test_weights_by_hand_stand_beside_the_routers(small_lab, built):
    hand = {"of": built["hash"], "weights": [0.0, 2.0, 0.0, 0.0], "normalise": False}
    found = router_work.look(small_lab, built, {"task": "mnist", "place": 1}, "router_argmax", hand)
    table = plain(router_looks.weight_table(found, TASKS))
    assert "Router By hand" in table and "Sum 1.000 2.000" in table
    data = json.loads(router_looks.weight_plot(found, TASKS).plot)["data"]
    assert [trace["name"] for trace in data] == ["router", "by hand"] and list(data[1]["x"]) == [0, 2.0, 0, 0]
    assert "The router gives 70% to the expert of MNIST" in router_looks.sentence(found, TASKS)
    hand["normalise"] = True
    found = router_work.look(small_lab, built, {"task": "mnist", "place": 1}, "router_argmax", hand)
    assert found["weights"]["by hand"] == [0.0, 1.0, 0.0, 0.0]


def test_a_batch_shows_groups_and_escapes_names(small_lab, built):
    cards, text, table = router_looks.batch_view(router_work.batch(small_lab, built, "oracle", 0, 1), TASKS)
    assert cards.count("<img") == 24 and "Group 4" in cards and "24 of 24" in text and "23 are read rightly" in text
    assert "<b>beta" not in cards and "<b>beta" not in table and "&lt;b&gt;beta" in table


def test_a_routed_result_fits_the_results_tab(small_lab, built):
    from mergelab.dashboard import views

    routed = {k: v for k, v in result(small_lab, built, "oracle").items() if k != "static"}
    line = views.model_table(routed, [routed])[-1]
    assert line[0] == "Twin-Merging, rank 4, oracle head" and line[1] == 88.0 and "head oracle" in line[6]


# ---- for programs ---------------------------------------------------------------------------------------------------

YAML = TwinRecipe.from_dict({**SHARED.to_dict(), "exclusive": {"rank": 4}}).to_yaml()


def refused(client, *args, api_name) -> str:
    with pytest.raises(Exception) as caught:
        client.predict(*args, api_name=api_name)
    message = str(caught.value)
    assert "Traceback" not in message and ".py" not in message and len(message) > 20
    return message


def test_programs_build_evaluate_and_predict(client):
    made = client.predict(YAML, api_name="/twin_build")
    assert made["bytes"]["exclusive"] == 400 and made["names"] == list(TASKS)
    assert made["recipe"]["exclusive"]["rank"] == 4
    found = client.predict(YAML, 40, "auto", "oracle", api_name="/twin_evaluate")
    assert (
        found["head"] == "oracle" and found["seen"]["accuracy"] == pytest.approx(0.88) and found["hash"] == made["hash"]
    )
    assert found["router"]["weights"]["mnist"]["mnist"] == 0.9
    seen = client.predict(YAML, "mnist", 2, "", [0, 0, 0, 1.0], False, "router_argmax", api_name="/twin_predict")
    assert seen["truth"] == "gamma" and seen["weights"]["by hand"]["shapes"] == 1.0 and seen["read_by"] == "mnist"
    assert set(seen["models"]) == {"shared", "routed", "by hand"}
    assert "by hand" not in client.predict(YAML, "mnist", api_name="/twin_predict")["models"]


def test_programs_get_sentences_for_what_is_wrong(client):
    assert "rank" in refused(client, YAML.replace("rank:", "rnak:", 1), api_name="/twin_build")
    assert "exclusive" in refused(client, YAML.replace("exclusive:", "exclusiv:"), api_name="/twin_build")
    assert "tise" in refused(client, YAML.replace("task_arithmetic", "tise"), api_name="/twin_build")
    assert "head" in refused(client, YAML, 40, "auto", "orcale", api_name="/twin_evaluate")
    assert "per_task" in refused(client, YAML, -1, "auto", "oracle", api_name="/twin_evaluate")
    assert "4 numbers" in refused(client, YAML, "mnist", 0, "", [1.0], False, "oracle", api_name="/twin_predict")
    assert "nope" in refused(client, YAML, "nope", api_name="/twin_predict")


def test_a_public_page_builds_nothing_from_its_own_disk(settings):
    import dataclasses

    lab = FakeLab(dataclasses.replace(settings, public=True))
    with pytest.raises(MergeLabError, match="public"):
        lab.check_sources(TwinRecipe.from_dict({**SHARED.to_dict(), "models": ["/etc/passwd"]}).shared)


def test_the_page_explains_before_anything_is_built(demo):
    by_id = {c["props"].get("elem_id"): c["props"] for c in demo.config["components"]}
    assert "Nothing is built yet" in by_id["router-status"]["value"]
    assert "Task arithmetic λ=0.4" in by_id["router-shared"]["value"]
    assert by_id["router-after"]["visible"] is False and "Mixed batch" in by_id["router-intro"]["value"]
