"""Scores of routed models: head policies, the router's tables, and streams, on a suite whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mergelab.errors import MergeLabError
from mergelab.routing.evaluate import answer, evaluate_routed, likeliest
from mergelab.routing.modes import GroupSettings, Runner
from mergelab.routing.routed import RoutedModel
from mergelab.tasks import Head, evaluate, load_suite


class Known:
    """A router that is right where the first feature says so: logits fixed per task by a table of its own."""

    kind = "test"

    def __init__(self, names: tuple[str, ...], choice: int, sure: float = 50.0) -> None:
        self.names, self.choice, self.sure, self.width = names, choice, sure, 384

    def logits(self, features: Tensor) -> Tensor:
        out = torch.zeros(len(features), len(self.names))
        out[:, self.choice] = self.sure
        return out

    def state(self) -> dict[str, Tensor]:
        return {}

    def about(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def runner(starter_routed: RoutedModel) -> Runner:
    return Runner(starter_routed)


def test_everything_kept_and_told_the_task_is_the_experts(starter_whole: RoutedModel):
    found = evaluate_routed(starter_whole, "starter", weights="oracle", head="oracle", limit=20, unseen=False,
                            mode="group", tasks=["mnist", "shapes"])  # fmt: skip
    for task in ("mnist", "shapes"):
        alone = evaluate(f"zoo:starter/{task}", "starter", tasks=[task], limit=20)
        assert torch.equal(found.evaluation.predictions[task], alone.predictions[task])
        assert found.evaluation.tasks[task].normalised == pytest.approx(1.0)
    assert found.merges == 2 and "told the task" in found.evaluation.data_used


def test_every_mode_scores_the_same_and_order_does_not_matter(runner: Runner):
    tasks = ["mnist", "fashion", "emoji"]
    options: dict[str, Any] = {"limit": 10, "tasks": tasks, "unseen": False}
    first = evaluate_routed(runner, "starter", mode="adapter", **options)
    for mode, order in (("adapter", "sorted"), ("per_input", "mixed"), ("group", "mixed")):
        again = evaluate_routed(
            runner, "starter", mode=mode, order=order, grouping=GroupSettings(per_bin=30), **options
        )
        assert again.mode == mode
        for task in tasks:
            assert torch.equal(again.predicted[task], first.predicted[task])
            torch.testing.assert_close(again.weights[task], first.weights[task], atol=1e-4, rtol=1e-3)


def test_a_router_that_is_always_wrong_leaves_nothing_to_its_argmax(runner: Runner):
    names = runner.routed.names
    wrong = Runner(replace(runner.routed, router=Known(names, names.index("captcha"))), runner.model)
    options: dict[str, Any] = {"limit": 10, "tasks": ["mnist", "captcha"], "unseen": False}
    found = evaluate_routed(wrong, "starter", head="router_argmax", **options)
    assert found.evaluation.tasks["mnist"].accuracy == 0
    assert found.evaluation.tasks["captcha"].accuracy > 0.5
    assert found.router["accuracy"] == 0.5
    assert found.router["confusion"]["mnist"]["captcha"] == 1.0
    assert found.router["weights"]["mnist"]["captcha"] == pytest.approx(1.0, abs=1e-3)
    assert found.router["entropy"]["mnist"] == pytest.approx(0.0, abs=1e-3)
    assert found.router["when_wrong"] == 0.0
    told = evaluate_routed(wrong, "starter", head="oracle", **options)
    assert told.evaluation.tasks["mnist"].accuracy > 0  # its own head on another's features: not zero by definition
    assert told.head == "oracle" and "oracle head" in told.evaluation.data_used
    assert "oracle" not in found.evaluation.data_used


def test_a_task_without_an_expert_is_scored_by_class_means_and_told_the_task(runner: Runner):
    found = evaluate_routed(runner, "starter", limit=20, tasks=["mnist", "clocks"], shots=5)
    score = found.evaluation.tasks["clocks"]
    assert not score.seen and score.head == "class mean" and score.accuracy > 1 / 24
    assert "clocks (told the task)" in found.evaluation.data_used
    assert found.evaluation.unseen.accuracy == score.accuracy
    assert "clocks" in found.router["confusion"] and found.router["accuracy"] is not None


def test_weights_from_elsewhere(runner: Runner):
    names = runner.routed.names
    options: dict[str, Any] = {"limit": 8, "tasks": ["mnist", "emoji"], "unseen": False, "head": "oracle"}
    uniform = evaluate_routed(runner, "starter", weights="uniform", **options)
    fixed = evaluate_routed(runner, "starter", weights=[1 / len(names)] * len(names), mode="static", **options)
    for task in ("mnist", "emoji"):
        assert torch.equal(uniform.predicted[task], fixed.predicted[task])
    assert fixed.merges == 1 and fixed.mode == "static"


def test_corrupted_pictures_are_what_is_shown_and_are_not_compared_with_experts(runner: Runner):
    options: dict[str, Any] = {"limit": 10, "tasks": ["mnist"], "unseen": False}
    black = evaluate_routed(runner, "starter", corrupt=lambda images: images * 0, **options)
    assert len(black.predicted["mnist"].unique(dim=0)) == 1
    assert black.evaluation.tasks["mnist"].normalised is None


def test_the_contract_has_what_evaluate_json_has_and_more(runner: Runner):
    plain = evaluate("zoo:starter/base", "starter", tasks=["mnist"], limit=4).to_dict()
    found = evaluate_routed(runner, "starter", tasks=["mnist"], limit=4).to_dict()
    assert set(plain) <= set(found)
    assert set(plain["tasks"]["mnist"]) == set(found["tasks"]["mnist"])
    assert {"head", "mode", "why", "router", "phases", "merges", "bytes", "seconds_per_1000", "experts"} <= set(found)
    for word, bad in (("head", "orcale"), ("mode", "adaptor"), ("order", "random"), ("weights", "best")):
        with pytest.raises(MergeLabError, match=word):
            evaluate_routed(runner, "starter", tasks=["mnist"], limit=4, **{word: bad})


def test_answers_by_hand():
    heads = {"a": Head(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), "b": Head(torch.tensor([[0.5, 0.0], [0.0, 3.0]]))}
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    guess = torch.tensor([1, 0])
    assert answer(heads, features, guess, ("a", "b"), "router_argmax").tolist() == [[1, 0], [0, 1]]
    assert answer(heads, features, guess, ("a", "b"), "max_logit").tolist() == [[0, 0], [1, 1]]
    weights = torch.tensor([[0.2, 0.8], [0.0, 0.0]])
    assert likeliest(weights, torch.tensor([[9.0, 0.0], [3.0, 1.0]])).tolist() == [1, 0]


def test_a_suite_without_any_of_the_tasks_is_refused(runner: Runner):
    with pytest.raises(MergeLabError, match="none of the tasks"):
        evaluate_routed(runner, load_suite("starter"), tasks=["clocks"], unseen=False)
