"""What every declared method must keep, whatever it does. A new method is tested here by being declared."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest_helpers import SHAPES, make_base, make_expert, make_statistics
from torch import Tensor

import mergelab
from mergelab.checkpoints import dtype_code, load, write
from mergelab.engine import merge_to_memory, plan
from mergelab.errors import MethodError
from mergelab.methods import Method, registry

METHODS = list(registry().values())
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
State = dict[str, Tensor]


@pytest.fixture(params=METHODS, ids=lambda method: method.name)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


def merge(
    method: Method, models: Any, base: State | None, parameters: Mapping[str, Any] | None = None, **more: Any
) -> State:
    """`mergelab.merge` with the method's own parameters as a mapping; the base only where it is of use."""
    given = None if method.base == "unused" else base
    more = {**needs(method, models), **more}
    return mergelab.merge(method.name, models, given, **more, **{_keyword(k): v for k, v in (parameters or {}).items()})


def needs(method: Method, models: Mapping[str, State]) -> dict[str, Any]:
    """What a method needs besides models: generated statistics, coefficients as if learned."""
    out: dict[str, Any] = {}
    if method.statistics(method.defaults()):
        out["statistics"] = make_statistics(models)
    if method.learns:
        out["learned"] = {name: [0.1 + ord(model[0]) % 7 / 10 for model in models] for name in SHAPES}
    return out


def _keyword(name: str) -> str:
    return name + "_" if name == "lambda" else name


def some(method: Method, experts: Mapping[str, State]) -> dict[str, State]:
    """As many of the experts as the method takes."""
    return dict(list(experts.items())[: method.models_max or len(experts)])


def same(found: State, expected: State) -> None:
    """Bit for bit the same tensors under the same names."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def close(found: State, expected: State, tolerance: float | None = None) -> None:
    """The same names, shapes and dtypes; floats within rounding of their dtype (float32: of the float32 arithmetic)."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        if tensor.is_floating_point():
            limit = tolerance or {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[tensor.dtype]
            torch.testing.assert_close(found[name], tensor, rtol=limit, atol=limit, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(found[name], tensor), name


# ---- the declaration ----


def test_describe_is_the_contract(method: Method) -> None:
    described = method.describe()
    wanted = {"name", "title", "kind", "summary", "formula", "paper", "base", "models", "data", "parameters"}
    assert wanted <= described.keys()
    assert all(isinstance(described[key], str) and described[key] for key in wanted - {"models", "parameters"})
    assert described["kind"] in ("tensor", "matched", "trained", "routed")
    assert described["base"] in ("required", "optional", "unused")
    assert described["data"] in ("none", "unlabelled", "labelled", "task id at inference")
    assert described["models"]["min"] >= 1
    assert described["models"]["max"] is None or described["models"]["max"] >= described["models"]["min"]
    assert re.search(r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.)", described["paper"])
    for parameter in described["parameters"]:
        assert {"name", "type", "default", "range", "per_model", "help"} <= parameter.keys()
        assert parameter["help"].endswith((".", "suits."))


def test_doc_says_three_things(method: Method) -> None:
    """What it does, when it helps, when it does not: three sentences."""
    assert len(re.findall(r"[.](?:\s|$)", method.doc)) == 3, method.doc
    assert method.formula.count("{") == method.formula.count("}")


def test_defaults_are_valid_and_out_of_range_is_refused(method: Method) -> None:
    names = [f"m{i}" for i in range(method.models_min)]
    values = method.resolve({}, names)
    assert list(values) == [parameter.name for parameter in method.parameters]
    for parameter in method.parameters:
        if parameter.type in ("float", "int"):
            assert parameter.range is not None
            for bad in (parameter.range[1] + 1, parameter.range[0] - 1, math.nan, math.inf, "much", None, True):
                with pytest.raises(MethodError, match=parameter.name):
                    method.resolve({parameter.name: bad}, names)
            low, high = parameter.slider or parameter.range
            assert parameter.range[0] <= low <= parameter.default <= high <= parameter.range[1]  # type: ignore[operator]
        else:
            for bad in ("no such choice", 3, None):
                with pytest.raises(MethodError, match=parameter.name):
                    method.resolve({parameter.name: bad}, names)


def test_unknown_parameter_gets_a_suggestion(method: Method) -> None:
    for parameter in method.parameters[:1]:
        with pytest.raises(MethodError, match=f"Did you mean '{parameter.name}'"):
            method.resolve({parameter.name + "x": 1}, ["a"])


# ---- the mathematics ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_expert_returns_that_expert(method: Method, dtype: torch.dtype) -> None:
    if method.promises.identity is None:
        pytest.skip("the method does not promise it")
    base = make_base(dtype)
    expert = make_expert(base, 0)
    found = merge(method, {"ant": expert}, base, method.promises.identity)
    buffers = expert if method.base == "unused" else base
    close(found, {**expert, "steps": buffers["steps"], "mask": buffers["mask"]})


def test_zero_coefficients_give_the_base(method: Method, base: State, experts: dict[str, State]) -> None:
    if method.promises.zero is None:
        pytest.skip("the method does not promise it")
    same(merge(method, some(method, experts), base, method.promises.zero), base)


def test_zero_weights_give_the_base(method: Method, base: State, experts: dict[str, State]) -> None:
    if (
        method.base == "unused"
        or method.kind != "tensor"
        or all(parameter.name != "weight" for parameter in method.parameters)
    ):
        pytest.skip("the method has no weights on task vectors")
    same(merge(method, some(method, experts), base, {"weight": 0.0}), base)


def test_equal_experts_give_that_expert(method: Method, base: State) -> None:
    if method.promises.equal is None:
        pytest.skip("the method does not promise it")
    expert = make_expert(base, 5)
    models = some(method, dict.fromkeys(("a", "b", "c"), expert))
    buffers = expert if method.base == "unused" else base
    found = merge(method, models, base, method.promises.equal)
    close(found, {**expert, "steps": buffers["steps"], "mask": buffers["mask"]})


def test_untrained_experts_give_the_base(method: Method, base: State) -> None:
    """All-zero task vectors: no division by zero, no noise."""
    found = merge(method, some(method, dict.fromkeys(("a", "b", "c"), base)), base)
    close(found, base) if method.gives == "weights" else same(found, base)


def test_order_of_the_models_does_not_matter(method: Method, base: State, experts: dict[str, State]) -> None:
    if not method.promises.permutation:
        pytest.skip("the order has a meaning for this method")
    weights = {}
    if any(parameter.name == "weight" for parameter in method.parameters):
        weights = {"weight": {"ant": 1.0, "bee": 0.5, "cat": 0.25}}
    forward = merge(method, experts, base, {**weights, **method.promises.random_parameters})
    backward = merge(method, dict(reversed(experts.items())), base, {**weights, **method.promises.random_parameters})
    backward |= {"steps": forward["steps"], "mask": forward["mask"]}
    close(backward, forward)


def widened(state: State) -> State:
    """The same values in float32, tied where they were."""
    out = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return {**out, "tied": out["square"]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_are_kept_and_computed_in_float32(method: Method, dtype: torch.dtype) -> None:
    base = make_base(dtype)
    models = some(method, {name: make_expert(base, seed) for seed, name in enumerate("abc")})
    found = merge(method, models, base)
    assert all(found[name].dtype == tensor.dtype and found[name].shape == tensor.shape for name, tensor in base.items())
    wide = merge(method, {name: widened(model) for name, model in models.items()}, widened(base))
    for name, tensor in wide.items():  # rounded once, at the end
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


def test_float64_agrees_with_float32(method: Method, base: State, experts: dict[str, State]) -> None:
    models = some(method, experts)
    found = merge(method, models, base, dtype="float64")
    assert all(tensor.dtype == torch.float64 for tensor in found.values() if tensor.is_floating_point())
    narrow = merge(method, models, base, method.promises.random_parameters)
    wide = merge(method, models, base, method.promises.random_parameters, dtype="float64", out_dtype="float32")
    close(wide, narrow, 2e-5)


def test_buffers_are_copied_and_tied_weights_stay_tied(method: Method, base: State, experts: dict[str, State]) -> None:
    models = some(method, experts)
    found = merge(method, models, base)
    reference = next(iter(models.values())) if method.base == "unused" else base
    for name in ("steps", "mask"):
        assert torch.equal(found[name], reference[name])
        assert found[name].data_ptr() != reference[name].data_ptr()
    assert found["tied"] is found["square"]


# ---- the same bits, however it is run ----


def test_threads_do_not_change_a_bit(method: Method, base: State, experts: dict[str, State]) -> None:
    models = some(method, experts)
    one = merge(method, models, base, threads=1)
    for threads in (2, 3):
        same(merge(method, models, base, threads=threads), one)


def test_inputs_are_not_written_to(method: Method, base: State, experts: dict[str, State]) -> None:
    before = {name: {k: t.clone() for k, t in state.items()} for name, state in {**experts, "base": base}.items()}
    merge(method, some(method, experts), base)
    for name, state in {**experts, "base": base}.items():
        same(state, before[name])


def test_shard_layout_does_not_change_a_bit(
    method: Method, base: State, experts: dict[str, State], tmp_path: Any
) -> None:
    def store(state: State, name: str, shard_bytes: float) -> str:
        stored = {key: tensor for key, tensor in state.items() if key != "tied"}
        entries = {key: (dtype_code(tensor.dtype), tuple(tensor.shape)) for key, tensor in stored.items()}
        return str(write(tmp_path / name, stored.items(), entries, config=None, max_shard_bytes=shard_bytes))

    def stored_merge(shard_bytes: float) -> State:
        folder = f"{shard_bytes:g}"
        models = {name: store(state, f"{folder}-{name}", shard_bytes) for name, state in some(method, experts).items()}
        opened = {name: load(source, name=name) for name, source in models.items()}
        root = None if method.base == "unused" else load(store(base, f"{folder}-base", shard_bytes))
        made = plan(method, opened, root, method.promises.random_parameters, **needs(method, models))
        return merge_to_memory(made)

    same(stored_merge(300), stored_merge(5e9))


def test_chunks_of_a_stream_do_not_change_a_bit(method: Method, base: State, experts: dict[str, State]) -> None:
    """A merge of some tensors alone gives the same bits as the whole (unless numbers of the whole model are used)."""
    models = some(method, experts)
    if method.survey is not None:
        pytest.skip("the method looks at the whole model")
    names = {"vector", "wide.weight", "conv.weight"}
    whole = merge(method, models, base)
    part = merge(method, {k: {n: m[n] for n in names} for k, m in models.items()}, {n: base[n] for n in names})
    same(part, {name: whole[name] for name in part})


def test_seeds(method: Method, base: State, experts: dict[str, State]) -> None:
    models = some(method, experts)
    parameters = method.promises.random_parameters
    first = merge(method, models, base, parameters, seed=1)
    same(merge(method, models, base, parameters, seed=1), first)
    other = merge(method, models, base, parameters, seed=2)
    differs = any(not torch.equal(other[name], tensor) for name, tensor in first.items())
    assert differs == method.promises.random


# ---- bad input ----


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["bee", "base"])
def test_a_value_that_is_not_finite_names_model_and_tensor(
    method: Method, base: State, experts: dict[str, State], value: float, where: str
) -> None:
    if where == "base" and method.base != "required":
        pytest.skip("the base is not read")
    victim = base if where == "base" else experts["bee"]
    victim["tall.weight"] = victim["tall.weight"].clone()
    victim["tall.weight"][2, 1] = value
    with pytest.raises(MethodError, match=r"tall\.weight") as caught:
        merge(method, some(method, experts), base)
    assert ("base" if where == "base" else "'bee'") in str(caught.value)
    assert "[2, 1]" in str(caught.value)


def test_too_few_and_too_many_models(method: Method, base: State, experts: dict[str, State]) -> None:
    with pytest.raises(MethodError, match="no models"):
        merge(method, {}, base)
    if method.models_min > 1:
        with pytest.raises(MethodError, match=f"{method.models_min} models"):
            merge(method, {"ant": experts["ant"]}, base)
    if method.models_max is not None:
        with pytest.raises(MethodError, match=f"{method.models_max} models"):
            merge(method, {str(i): experts["ant"] for i in range(method.models_max + 1)}, base)


def test_a_missing_base_is_named(method: Method, experts: dict[str, State]) -> None:
    if method.base != "required":
        mergelab.merge(method.name, some(method, experts), **needs(method, experts))
        return
    with pytest.raises(MethodError, match="no base is given"):
        mergelab.merge(method.name, some(method, experts), **needs(method, experts))


def test_different_structures_name_model_and_tensor(method: Method, base: State, experts: dict[str, State]) -> None:
    models = some(method, experts)
    missing = {**models, "bee": {k: v for k, v in models["bee"].items() if k != "row"}}
    with pytest.raises(MethodError, match=r"'bee' lacks .*'row'"):
        merge(method, missing, base)
    extra = {**models, "bee": {**models["bee"], "head": torch.ones(2)}}
    with pytest.raises(MethodError, match=r"'bee' has 1 tensor .*'head'"):
        merge(method, extra, base)
    shape = {**models, "bee": {**models["bee"], "vector": torch.ones(9)}}
    with pytest.raises(MethodError, match=r"'vector' of model 'bee' has shape 9, but 7"):
        merge(method, shape, base)
