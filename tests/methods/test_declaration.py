"""Declarations: values are checked, per-model values come in every form, and errors say what to do."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from mergelab import methods
from mergelab.errors import MethodError
from mergelab.methods import Method, get, registry

NAMES = ("ant", "bee")


def test_the_shelf() -> None:
    assert list(registry()) == sorted([
        "breadcrumbs", "dare_linear", "dare_ties", "linear", "model_stock", "slerp", "task_arithmetic", "ties", "tsv_m",
        "fisher", "regmean", "regmean_pp", "mats", "adamerging", "pcgrad",
    ])  # fmt: skip
    assert all(isinstance(method, Method) and method.name == name for name, method in registry().items())


@pytest.mark.parametrize(
    ("wrong", "meant"), [("dare-ties", "dare_ties"), ("TIES", "ties"), ("task_arithmatic", "task_arithmetic")]
)
def test_an_unknown_method_gets_a_suggestion(wrong: str, meant: str) -> None:
    with pytest.raises(MethodError, match=f"Did you mean '{meant}'"):
        get(wrong)


def test_a_name_like_nothing_lists_what_there_is() -> None:
    with pytest.raises(MethodError, match="task_arithmetic"):
        get("xyzzy")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, [0.5, 0.5]),
        (1, [1.0, 1.0]),
        ([0.25, 2], [0.25, 2.0]),
        ((0.25, 2), [0.25, 2.0]),
        ({"bee": 2, "ant": 0.25}, [0.25, 2.0]),
        (np.array([0.25, 2.0]), [0.25, 2.0]),
        (torch.tensor([0.25, 2.0]), [0.25, 2.0]),
        (np.float32(0.5), [0.5, 0.5]),
        (torch.tensor(0.5), [0.5, 0.5]),
    ],
    ids=str,
)
def test_per_model_values(value: object, expected: list[float]) -> None:
    assert get("linear").resolve({"weight": value}, NAMES)["weight"] == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "has 1 value for 2 models"),
        ({"ant": 1.0}, "no value for the model 'bee'"),
        ({"ant": 1.0, "bea": 1.0}, "Did you mean 'bee'"),
        ([1.0, "x"], "'bee'.*must be a number"),
        ({"ant": 1.0, "bee": 99}, "'bee'.*out of range: give -10 to 10"),
        ("0.5", "must be a number, not '0.5'"),
    ],
    ids=str,
)
def test_wrong_per_model_values(value: object, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        get("linear").resolve({"weight": value}, NAMES)


def test_a_models_own_values_win() -> None:
    found = get("ties").resolve({"weight": 0.5}, NAMES, {"bee": {"weight": 2, "density": 0.1}})
    assert found["weight"] == [0.5, 2.0]
    assert found["density"] == [0.2, 0.1]


def test_a_global_parameter_cannot_belong_to_a_model() -> None:
    with pytest.raises(MethodError, match=re.escape("one value for the whole merge")):
        get("ties").resolve({}, NAMES, {"bee": {"lambda": 2}})
    with pytest.raises(MethodError, match="Did you mean 'bee'"):
        get("ties").resolve({}, NAMES, {"be": {"weight": 2}})


def test_lambda_as_a_python_keyword() -> None:
    assert get("ties").resolve({"lambda_": 0.5}, NAMES)["lambda"] == 0.5
    with pytest.raises(MethodError, match="twice"):
        get("ties").resolve({"lambda_": 0.5, "lambda": 0.4}, NAMES)


def test_a_choice_gets_a_suggestion() -> None:
    with pytest.raises(MethodError, match="Did you mean 'weighted'"):
        get("ties").resolve({"elect": "weigted"}, NAMES)


def test_a_method_is_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """A file put into the package is on the shelf without any other edit."""
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "sketch.py").write_text(
        "from mergelab.methods.declaration import method\n"
        "@method(name='first', title='First', group='g', summary='s', formula='f', paper='p', url='u', doc='d',"
        " base='unused', gives='weights')\n"
        "def first(base, experts, *, context):\n    return experts[0].clone()\n"
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    methods._shelf.cache_clear()
    try:
        assert get("first").describe()["models"] == {"min": 1, "max": None}
    finally:
        monkeypatch.undo()
        methods._shelf.cache_clear()
