"""What matched methods refuse, and what a person reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import state
from matched_cases import NAMES, psd
from torch import Tensor

import mergelab
from mergelab.engine import plan
from mergelab.errors import MergeLabError, MethodError, RecipeError, StatisticsError
from mergelab.recipe import Recipe
from mergelab.statistics import Block, TaskStatistics


def refused(error: type[MergeLabError], *arguments: Any, **more: Any) -> str:
    with pytest.raises(error) as caught:
        plan(*arguments, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"weight": 0.0}, "Every 'weight' of 'mats' is 0, so no task counts; give at least one model more than 0."),
        ({"weight": -1.0}, "Parameter 'weight' of 'mats' is -1, out of range: give 0 to 1e+06."),
        ({"weight": float("nan")}, "Parameter 'weight' of 'mats' must be a finite number, not nan."),
        (
            {"weight": [1.0]},
            "Parameter 'weight' of 'mats' has 1 value for 2 models; give one for each model.",
        ),
        (
            {"weight": {"ant": 1.0}},
            "Parameter 'weight' of 'mats' has no value for the model 'bee'; give one for each model.",
        ),
        ({"iterations": -1}, "Parameter 'iterations' of 'mats' is -1, out of range: give 0 to 10000."),
        ({"iterations": 2.5}, "Parameter 'iterations' of 'mats' must be a whole number, not 2.5."),
        ({"rtol": 0.0}, "Parameter 'rtol' of 'mats' is 0, out of range: give 1e-14 to 1."),
        ({"off_diagonal": 1.1}, "Parameter 'off_diagonal' of 'mats' is 1.1, out of range: give 0 to 1."),
        ({"damping": -0.1}, "Parameter 'damping' of 'mats' is -0.1, out of range: give 0 to 1000."),
        ({"floor": -1e-8}, "Parameter 'floor' of 'mats' is -1e-08, out of range: give 0 to 1."),
        (
            {"objective": "block_fisher"},
            "Parameter 'objective' of 'mats' cannot be 'block_fisher'. Known: block, diag, gram, identity, kfac.",
        ),
        (
            {"preconditioner": "ilu"},
            "Parameter 'preconditioner' of 'mats' cannot be 'ilu'. Known: jacobi, kronecker, none.",
        ),
        (
            {"preconditioner": "kronecker", "objective": "diag"},
            "Preconditioner 'kronecker' of 'mats' needs objective 'kfac' or 'gram', not 'diag'; choose 'jacobi' or "
            "'none'.",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range(models: Any, statistics: Any, parameters: dict[str, Any], sentence: str) -> None:
    assert refused(MethodError, "mats", models, state(), parameters, statistics=statistics) == sentence


def test_one_model_is_too_few(models: Any, statistics: Any) -> None:
    for method in ("mats", "regmean", "fisher"):
        said = refused(MethodError, method, {"ant": models["ant"]}, statistics=statistics)
        assert said == f"Method {method!r} merges at least 2 models, but 1 is given."


def test_two_models_of_one_name() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe("mats", ({"model": "a", "name": "x"}, {"model": "b", "name": "x"}))
    assert str(caught.value) == "Two models have the name 'x'; give each its own."


def test_keys_shapes_and_quantised_weights(models: Any, statistics: Any) -> None:
    ant, bee = models["ant"], models["bee"]
    lacks = {key: tensor for key, tensor in bee.items() if key == "position_ids"}
    assert refused(MethodError, "mats", {"ant": ant, "bee": lacks}, statistics=statistics) == (
        "Model 'bee' lacks 4 tensors that model 'ant' has: 'block.0.bias', 'block.0.weight', 'block.1.weight', 'norm'. "
        "Merge checkpoints of one architecture, fine-tuned from the same base."
    )
    more = {**bee, **{f"head.{i}": torch.ones(1) for i in range(7)}}
    assert refused(MethodError, "mats", {"ant": ant, "bee": more}, statistics=statistics) == (
        "Model 'bee' has 7 tensors that model 'ant' lacks: 'head.0', 'head.1', 'head.2', 'head.3', 'head.4' and 2 "
        "more. Save the model without its task head, or choose the base that it was fine-tuned from."
    )
    wide = {**bee, "norm": torch.ones(5)}
    assert refused(MethodError, "mats", {"ant": ant, "bee": wide}, statistics=statistics) == (
        "Tensor 'norm' of model 'bee' has shape 5, but 4 in model 'ant'. Merge checkpoints of one size and vocabulary."
    )
    quantised = {**bee, "block.0.weight": torch.ones(6, 4, dtype=torch.int8)}
    assert refused(MethodError, "mats", {"ant": ant, "bee": quantised}, statistics=statistics) == (
        "Tensor 'block.0.weight' of model 'bee' is stored as I8, but as F32 in model 'ant'. Convert the checkpoints to "
        "one floating-point dtype (quantised weights cannot be merged)."
    )


def test_statistics_that_are_not_there(models: Any, zoo: dict[str, str], tmp_path: Path) -> None:
    assert refused(StatisticsError, "mats", models) == (
        "Method 'mats' needs statistics of every model's task (kfac), and none are given; collect them with `python -m "
        "mergelab stats SOURCE --kinds kfac --out DIR` and name that folder as 'statistics' in the recipe, or with "
        "--stats."
    )
    assert refused(StatisticsError, "regmean", models, statistics="no/such") == (
        "There is no folder 'no/such' with statistics; make it with `python -m mergelab stats SOURCE --kinds gram "
        "--out no/such`, or name another."
    )
    assert refused(StatisticsError, "regmean", models, statistics=3) == (
        "Statistics must be a folder or a mapping of names to them, not int; collect them with python -m mergelab "
        "stats."
    )


def test_statistics_of_another_shape(models: Any, statistics: Any) -> None:
    random = torch.Generator().manual_seed(0)
    block = Block(psd(5, random), psd(6, random)[None], rows=9, layout="linear", shape=(6, 5))
    wrong = {**statistics, "bee": TaskStatistics("bee", {"block.0.weight": block}, where="bee.safetensors")}
    said = refused(StatisticsError, "mats", models, statistics=wrong)
    assert said.startswith("bee.safetensors (bee), tensor 'block.0.weight': the Gram matrix A has the shape [5, 5], ")
    assert "[4, 4]" in said


@pytest.mark.parametrize(
    ("init", "sentence"),
    [
        ("averge", "There is no init 'averge'. Did you mean 'average'?"),
        ("base", "The init 'base' needs the base, and none is given; name it, or start from 'average'."),
        (
            "ties",
            "The init 'ties': Method 'ties' works on differences from the base, but no base is given; name the "
            "checkpoint that the models were fine-tuned from.",
        ),
        (
            {"merge_method": "linear", "parameters": {"weigth": 1}},
            "The init 'linear': Method 'linear' has no parameter 'weigth'. Did you mean 'weight'?",
        ),
        (
            "adamerging",
            "The init 'adamerging' learns its coefficients on data first; merge it to a folder and give that as init: "
            "{model: FOLDER}.",
        ),
    ],
    ids=str,
)
def test_inits_that_cannot_be(models: Any, statistics: Any, init: Any, sentence: str) -> None:
    assert refused(MethodError, "mats", models, init=init, statistics=statistics) == sentence


def test_malformed_inits(models: Any, statistics: Any) -> None:
    assert refused(RecipeError, "mats", models, init={"method": "ties"}, statistics=statistics) == (
        "Unknown key 'method' in 'init'. Did you mean 'merge_method'?"
    )
    assert refused(RecipeError, "mats", models, init=0.3, statistics=statistics) == (
        "'init' must be a method's name, 'base', 'average' or a mapping with 'merge_method', not a number."
    )


def test_init_states_that_do_not_fit(models: Any, statistics: Any) -> None:
    short = {key: tensor for key, tensor in state().items() if key != "norm"}
    assert refused(MethodError, "mats", models, state(), init=short, statistics=statistics) == (
        "The init lacks 1 tensor that the base has: 'norm'. Give a merge of these models as init."
    )
    wide = {**state(), "norm": torch.ones(9)}
    assert refused(MethodError, "mats", models, init=wide, statistics=statistics) == (
        "Tensor 'norm' of the init has shape 9, but 4 in every model. Give a merge of these models as init."
    )


def test_a_method_that_starts_from_nothing(models: Any) -> None:
    assert refused(MethodError, "ties", models, state(), init="linear") == (
        "Method 'ties' does not start from another merge; leave 'init' out, or use 'fisher', 'mats', 'regmean' or "
        "'regmean_pp'."
    )


@pytest.fixture
def vectors() -> tuple[dict[str, dict[str, Tensor]], dict[str, TaskStatistics]]:
    """(IA)³ vectors of two experts with their full and diagonal Fishers, and Grams of nothing here."""
    random = torch.Generator().manual_seed(0)
    models = {name: {"k_proj.ia3_l": 1 + 0.1 * torch.randn(5, generator=random)} for name in NAMES}
    other = Block(psd(4, random), psd(4, random)[None], rows=9, layout="linear", shape=(4, 4))
    statistics = {
        name: TaskStatistics(
            name,
            {"k_proj.ia3_l": Block(diagonal=torch.rand(5, generator=random), full=psd(5, random), examples=9,
                                   shape=(5,)), "q_proj.weight": other},
        )
        for name in NAMES
    }  # fmt: skip
    return models, statistics


def test_ia3_vectors_have_no_linear_inputs(vectors: Any) -> None:
    models, statistics = vectors
    said = refused(MethodError, "mats", models, statistics=statistics)
    assert said == (
        "Method 'mats' with objective 'kfac' needs inputs of linear layers and gradients of their outputs (K-FAC "
        "factors), and all 1 tensors of these models are vectors, such as 'k_proj.ia3_l', with no linear inputs of "
        "their own; use 'mats' with objective 'block' or 'diag'."
    )
    assert refused(MethodError, "regmean", models, statistics=statistics) == (
        "Method 'regmean' needs inputs of linear layers (Gram matrices), and all 1 tensors of these models are vectors,"
        " such as 'k_proj.ia3_l', with no linear inputs of their own; use 'mats' with objective 'block' or 'diag'."
    )
    merged = mergelab.merge("mats", models, statistics=statistics, objective="block", iterations=50, dtype="float64")
    c = [s.block("k_proj.ia3_l").full.double() for s in statistics.values()]
    pull = sum(one @ m["k_proj.ia3_l"].double() for one, m in zip(c, models.values(), strict=True))
    torch.testing.assert_close(merged["k_proj.ia3_l"], torch.linalg.solve(sum(c), pull), rtol=1e-4, atol=1e-5)


def test_a_full_block_of_a_large_tensor(vectors: Any) -> None:
    random = torch.Generator().manual_seed(0)
    models = {name: {"w": torch.randn(200, 100, generator=random)} for name in NAMES}
    assert refused(MethodError, "mats", models, None, {"objective": "block"}, statistics=vectors[1]) == (
        "Method 'mats' with objective 'block' needs a full Fisher block per tensor, and no tensor has one: that of 'w' "
        "with 20,000 entries would take 1.6 GB a model; use objective 'kfac' or 'diag'."
    )


def test_statistics_of_other_tensors(vectors: Any) -> None:
    models = {name: {"w": torch.randn(3, 3)} for name in NAMES}
    assert refused(MethodError, "mats", models, statistics=vectors[1]) == (
        "Method 'mats' with objective 'kfac' needs inputs of linear layers and gradients of their outputs (K-FAC "
        "factors), and the statistics have them for none of the 1 tensors that all models share; collect them again "
        "from these models."
    )


def test_lora_factors_are_not_solved_for(statistics: Any) -> None:
    models = {name: {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(4, 2)} for name in NAMES}
    assert refused(MethodError, "mats", models, statistics=statistics) == (
        "Tensor 'q.lora_A.weight' is one factor of a LoRA adapter, and factors cannot be solved for one by one; give "
        "the adapters as folders with their base, so that their products are merged."
    )
