"""(IA)³ experts merged vector by vector: statistics, solver, files, the verbs; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ia3_zoo
import pytest
import torch
from torch import Tensor

import mergelab
from mergelab import cli
from mergelab.calibration import collect_vectors, collect_zoo
from mergelab.checkpoints import adapter_vectors, load
from mergelab.checkpoints.header import shown
from mergelab.engine import merge_to_folder, merge_to_memory, plan, plan_recipe, preflight
from mergelab.engine.adapters import as_weights
from mergelab.errors import MergeLabError, MethodError, RecipeError, StatisticsError
from mergelab.recipe import Recipe
from mergelab.runs import Bench
from mergelab.runs.choose import choose
from mergelab.runs.solve_path import solve_path
from mergelab.statistics import Block, TaskStatistics, read_folder
from mergelab.tasks import evaluate, heads_for, load_suite

TASKS = ("grey", "colour")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ia3_zoo.ia3_zoo(tmp_path_factory.mktemp("ia3") / "tiny")


@pytest.fixture(scope="module")
def experts(zoo: Path) -> dict[str, str]:
    return {name: str(zoo / "experts" / name) for name in TASKS}


@pytest.fixture(scope="module")
def folder(zoo: Path, experts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full blocks and diagonals of all vectors, from more pictures than the larger vectors have entries' rank."""
    out = tmp_path_factory.mktemp("statistics") / "all"
    return collect_zoo(zoo, experts, out, kinds=["block", "diag"], examples=30, space="adapter", device="cpu")


def recipe(zoo: Path, **more: Any) -> Recipe:
    given = {"merge_method": "mats", "base_model": str(zoo / "base"), "space": "adapter",
             "models": [{"model": str(zoo / "experts" / name), "name": name} for name in TASKS],
             "parameters": {"objective": "block"}}  # fmt: skip
    return Recipe.from_dict({**given, **more})


def test_the_view_of_an_adapters_own_vectors(zoo: Path, experts: dict[str, str]) -> None:
    view = adapter_vectors(experts["grey"])
    expected = ia3_zoo.vectors(0)
    assert set(view) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(view[name], tensor) and view.infos[name].dtype == "F16"
    assert view.weights_hash == load(experts["grey"]).weights_hash != load(experts["colour"]).weights_hash
    weight = "encoder.layer.1.mlp.fc2.weight"
    halved = view.dense({name: tensor / 2 for name, tensor in expected.items()})
    torch.testing.assert_close(halved[weight], load(experts["grey"])[weight] / 2)


def test_the_block_objective_equals_a_dense_solve(experts: dict[str, str]) -> None:
    """Random full blocks of full rank: enough steps reach (C1 + C2)⁻¹ (C1 v1 + C2 v2), whatever the start."""
    draw = torch.Generator().manual_seed(5)
    own = {name: adapter_vectors(source) for name, source in experts.items()}
    statistics: dict[str, TaskStatistics] = {}
    for name, vectors in own.items():
        blocks = {}
        for key, info in vectors.infos.items():
            rows = torch.randn(400, max(info.shape), generator=draw)
            blocks[key] = Block(full=rows.T @ rows / 400, examples=400, shape=info.shape)
        statistics[name] = TaskStatistics(name, blocks, fisher="empirical", weights_hash=vectors.weights_hash)
    merged = mergelab.merge(
        "mats", experts, space="adapter", statistics=statistics, objective="block", iterations=300, rtol=1e-12,
        dtype="float64", out_dtype="float64", init={"merge_method": "task_arithmetic", "parameters": {"lambda": 0.2}},
    )  # fmt: skip
    assert set(merged) == set(own["grey"])
    for key, found in merged.items():
        c = [statistics[name].block(key).full.double() for name in TASKS]
        v = [own[name][key].double().flatten() for name in TASKS]
        exact = torch.linalg.solve(c[0] + c[1], c[0] @ v[0] + c[1] @ v[1])
        torch.testing.assert_close(found.flatten(), exact, rtol=1e-7, atol=1e-7)
        assert found.shape == own["grey"][key].shape


def test_what_no_task_sees_stays_neutral(experts: dict[str, str]) -> None:
    """From the base (all ones), entries without information keep 1; the others come from the task that sees them."""
    own = {name: adapter_vectors(source) for name, source in experts.items()}
    statistics = {}
    for place, (name, vectors) in enumerate(own.items()):
        blocks = {}
        for key, info in vectors.infos.items():
            seen = torch.zeros(max(info.shape))
            seen[place::3] = 2.0  # task 0 sees every third entry, task 1 those after them, nobody the rest
            blocks[key] = Block(full=torch.diag(seen), diagonal=seen.reshape(info.shape), examples=9, shape=info.shape)
        statistics[name] = TaskStatistics(name, blocks, fisher="empirical")
    for more in ({"objective": "block", "iterations": 20}, {"objective": "diag", "iterations": 20}):
        merged = mergelab.merge("mats", experts, space="adapter", statistics=statistics, init="base", **more)
        for key, found in merged.items():
            flat = found.flatten()
            assert found.dtype == torch.float32 and torch.equal(flat[2::3], torch.ones(len(flat[2::3])))
            for place, name in enumerate(TASKS):
                expected = own[name][key].float().flatten()[place::3]
                torch.testing.assert_close(flat[place::3], expected, rtol=1e-5, atol=1e-5)


def test_the_neutral_vector_is_the_base_of_task_arithmetic(experts: dict[str, str]) -> None:
    own = [adapter_vectors(source) for source in experts.values()]
    found = mergelab.merge("task_arithmetic", experts, space="adapter", lambda_=0.3)
    for key, tensor in found.items():
        tau = sum(vectors[key].float() - 1 for vectors in own)
        torch.testing.assert_close(tensor, 1 + 0.3 * tau, rtol=1e-6, atol=1e-6)


def test_one_adapter_in_one_adapter_out(zoo: Path, folder: Path, tmp_path: Path) -> None:
    """Written, the merge is an (IA)³ adapter that loads with its base as the full weights that its vectors make."""
    made = plan_recipe(recipe(zoo, statistics=str(folder), init="task_arithmetic"))
    out = merge_to_folder(made, tmp_path / "out")
    vectors = merge_to_memory(made)
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "mergelab_recipe.yaml", "mergelab_solve.json", "README.md"
    }  # fmt: skip
    view, base = adapter_vectors(out), load(zoo / "base")
    assert set(view) == set(vectors) and all(torch.equal(view[name], vectors[name]) for name in vectors)
    merged = load(out)
    assert merged.changed == load(zoo / "experts" / "grey").changed
    fc2, key = "encoder.layer.0.mlp.fc2", "encoder.layer.1.attention.k_proj"
    columns = vectors[f"base_model.model.{fc2}.ia3_l"]
    torch.testing.assert_close(merged[f"{fc2}.weight"], base[f"{fc2}.weight"] * columns)
    torch.testing.assert_close(
        merged[f"{key}.bias"], base[f"{key}.bias"] * vectors[f"base_model.model.{key}.ia3_l"].flatten()
    )
    for name, tensor in as_weights(made, vectors).items():
        assert torch.equal(tensor, merged[name]), name
    again = plan_recipe(Recipe.read(out / "mergelab_recipe.yaml"))
    assert again.space == "adapter" and again.recipe.hash == made.recipe.hash
    log = json.loads((out / "mergelab_solve.json").read_text())
    assert log["summary"]["by"] == {"cg": 6}
    suite = load_suite(zoo)
    by_file = evaluate(str(out), suite, tasks=TASKS, limit=20)
    by_state = evaluate(str(zoo / "base"), suite, tasks=TASKS, limit=20, state=as_weights(made, vectors))
    for name in TASKS:
        assert by_file.tasks[name].accuracy == by_state.tasks[name].accuracy


def test_statistics_of_an_adapter_that_spells_layers_the_older_way(zoo: Path, folder: Path, tmp_path: Path) -> None:
    older = {name.replace(".k_proj.", ".attention.key.").replace(".v_proj.", ".attention.value."): t
             for name, t in ia3_zoo.vectors(0).items()}  # fmt: skip
    path = ia3_zoo.write_ia3(tmp_path / "older", older, str(zoo / "base"))
    suite = load_suite(zoo)
    found = collect_vectors(path, suite["grey"], heads_for(suite)["grey"], examples=30, kinds=["block"], device="cpu")
    assert set(found.names) == set(older)
    known = read_folder(folder)["grey"]
    key = "base_model.model.encoder.layer.0.attention.attention.key.ia3_l"
    expected = known.block(key.replace("attention.attention.key", "attention.k_proj"), ["block"])
    torch.testing.assert_close(found.block(key).full, expected.full)


def test_peft_reads_what_was_written(zoo: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import Dinov2Model

    config = {"merge_method": "linear", "parameters": {}}
    out = merge_to_folder(plan_recipe(recipe(zoo, **config)), tmp_path / "out")
    tower = peft.PeftModel.from_pretrained(Dinov2Model.from_pretrained(zoo / "base"), str(out))
    state = tower.merge_and_unload().state_dict()
    merged = load(out)
    spelled = mergelab.models.build(str(zoo / "base"), device="cpu").own_names(list(merged))
    for name in merged.changed:
        torch.testing.assert_close(state[spelled[name]], merged[name], rtol=1e-5, atol=1e-6)


def test_statistics_merge_and_evaluate_from_the_command_line(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats, out = str(tmp_path / "stats"), str(tmp_path / "out")
    collect = ["stats", str(zoo), "--space", "adapter", "--examples", "8", "--device", "cpu"]
    assert cli.main([*collect, "--out", stats]) == 0
    found = read_folder(stats)
    assert found["grey"].kinds == ("diag", "block") and len(found["grey"]) == 6
    assert cli.main([*collect, "--estimate"]) == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(zoo, init={"merge_method": "task_arithmetic", "parameters": {"lambda": 0.2}}).to_yaml())
    capsys.readouterr()
    assert cli.main(["check", str(path), "--stats", stats]) == 0
    assert "Statistics (block) of 2 tasks" in capsys.readouterr().out
    assert cli.main(["merge", str(path), "--stats", stats, "--out", out]) == 0
    assert "Tensors: 6 by cg" in capsys.readouterr().out
    assert cli.main(["evaluate", out, "--suite", str(zoo), "--limit", "5", "--json"]) == 0
    assert set(TASKS) <= set(json.loads(capsys.readouterr().out)["tasks"])


def test_a_bench_and_a_choice_measure_the_weights_that_the_vectors_make(zoo: Path, folder: Path) -> None:
    bench = Bench(str(zoo / "base"), {n: str(zoo / "experts" / n) for n in TASKS}, load_suite(zoo), device="cpu")
    wanted = recipe(zoo, statistics=str(folder), init="task_arithmetic")
    state = bench.merged(wanted)
    made = plan_recipe(wanted)
    expected = as_weights(made, merge_to_memory(made))
    assert set(state) == set(load(zoo / "base")) and all(torch.equal(state[n], t) for n, t in expected.items())
    found = choose(bench, wanted, {"iterations": [2]}, limit=10)
    assert found.grid == {"iterations": (0, 2)} and found.best in (0, 1)
    start = bench.merged(recipe(zoo, merge_method="task_arithmetic", parameters={}))
    rows = evaluate(bench.model(), load_suite(zoo), split="val", limit=10, tasks=TASKS, state=start)
    for name in TASKS:  # 0 iterations of the vectors' solver from task arithmetic is task arithmetic of the vectors
        assert found.scores[0].tasks[name] == rows.tasks[name].accuracy


def test_the_path_of_a_solve_is_measured_on_the_weights_that_the_vectors_make(zoo: Path, folder: Path) -> None:
    bench = Bench(str(zoo / "base"), {n: str(zoo / "experts" / n) for n in TASKS}, load_suite(zoo), device="cpu")
    wanted = recipe(zoo, statistics=str(folder), parameters={"objective": "block", "iterations": 2})
    path = solve_path(bench, wanted, (0, 2), limit=8)
    assert [point["k"] for point in path.points] == [0, 2] and all(p["accuracy"] is not None for p in path.points)
    kept = bench.merged(wanted)
    made = plan_recipe(wanted)
    expected = as_weights(made, merge_to_memory(made))
    assert set(kept) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(kept[name], tensor)


def refused(error: type[MergeLabError], *args: Any, **more: Any) -> str:
    with pytest.raises(error) as caught:
        plan(*args, **more)
    return str(caught.value)


def test_linear_statistics_of_vectors_are_refused(zoo: Path, experts: dict[str, str]) -> None:
    """Before any statistics are asked for, as there can be none."""
    vector = "'base_model.model.encoder.layer.0.attention.k_proj.ia3_l'"
    ending = (
        f", and all 6 tensors of these models are vectors, such as {vector}, with no linear inputs of their own; use "
        "'mats' with objective 'block' or 'diag'."
    )
    assert refused(MethodError, "regmean", experts, space="adapter") == (
        "Method 'regmean' needs inputs of linear layers (Gram matrices)" + ending
    )
    for objective, words in (
        ("gram", "inputs of linear layers (Gram matrices)"),
        ("kfac", "inputs of linear layers and gradients of their outputs (K-FAC factors)"),
    ):
        found = refused(MethodError, "mats", experts, None, {"objective": objective}, space="adapter")
        assert found == f"Method 'mats' with objective '{objective}' needs {words}{ending}"
    started = refused(MethodError, "mats", experts, None, {"objective": "block"}, space="adapter", init="regmean")
    assert started.startswith("Method 'regmean' needs inputs of linear layers")
    with pytest.raises(
        StatisticsError, match="which has no linear inputs of its own: take the kinds 'block' or 'diag'"
    ):
        collect_zoo(zoo, experts, zoo / "never", kinds=["gram"], examples=4, space="adapter", device="cpu")
    assert refused(StatisticsError, "mats", experts, None, {"objective": "block"}, space="adapter").endswith(
        "collect them with `python -m mergelab stats SOURCE --kinds block --space adapter --out DIR` and name that "
        "folder as 'statistics' in the recipe, or with --stats."
    )


def lora(folder: Path, base: str) -> str:
    """A LoRA adapter of one layer."""
    name = "base_model.model.encoder.layer.0.mlp.fc1"
    tensors: dict[str, Tensor] = {
        f"{name}.lora_A.weight": torch.ones(2, 24),
        f"{name}.lora_B.weight": torch.ones(96, 2),
    }
    return str(ia3_zoo.write_ia3(folder, tensors, base, peft_type="LORA", r=2, lora_alpha=2, target_modules=["fc1"]))


def test_lora_factors_are_never_merged_as_they_are(zoo: Path, experts: dict[str, str], tmp_path: Path) -> None:
    made = lora(tmp_path / "low", str(zoo / "base"))
    assert refused(MethodError, "linear", {"grey": experts["grey"], "low": made}, space="adapter") == (
        "Model 'low': low is a 'LORA' adapter: its factors A and B cannot be merged or solved for one by one, as only "
        "their product means something. Leave out space 'adapter'; then the products are merged as dense weights."
    )
    dense = mergelab.merge("linear", {"grey": experts["grey"], "low": made}, base=str(zoo / "base"))
    weight = "encoder.layer.0.mlp.fc1.weight"
    torch.testing.assert_close(dense[weight], load(zoo / "base")[weight] + 1.0)  # half of B·A = 2 everywhere


def test_what_cannot_be_merged_vector_by_vector(zoo: Path, experts: dict[str, str], tmp_path: Path) -> None:
    base, own = str(zoo / "base"), ia3_zoo.vectors(3)

    def with_other(path: str, **more: Any) -> str:
        return refused(MethodError, "linear", {"grey": experts["grey"], "other": path}, space="adapter", **more)

    assert with_other(base) == (
        "Model 'other': base is no adapter but whole weights, so it has no vectors of its own: leave out space "
        "'adapter'."
    )
    turned = {name: t for name, t in own.items() if "fc2" not in name}
    path = ia3_zoo.write_ia3(tmp_path / "turned", turned, base, feedforward_modules=["k_proj", "v_proj"])
    assert with_other(str(path)) == (
        "The adapters 'grey' and 'other' differ in feedforward_modules (['fc2'] and ['k_proj', 'v_proj']), so that "
        "their vectors multiply different things: merge them as dense weights."
    )
    path = ia3_zoo.write_ia3(tmp_path / "fewer", turned, base)
    lacking = ", ".join(repr(name) for name in sorted(own) if "fc2" in name)
    assert with_other(str(path)) == (
        f"Model 'other' lacks 2 tensors that the base has: {lacking}. Merge checkpoints of one architecture, "
        "fine-tuned from the same base."
    )
    saved = {**own, "base_model.model.layernorm.weight": torch.ones(24)}
    path = ia3_zoo.write_ia3(tmp_path / "saved", saved, base, modules_to_save=["layernorm"])
    assert with_other(str(path)) == (
        "Model 'other': saved has the tensor 'base_model.model.layernorm.weight' beside its (IA)³ vectors, so that it "
        "is not all in them: leave out space 'adapter', and it is merged as dense weights."
    )
    state = {name: tensor + (name == "layernorm.bias") for name, tensor in load(base).items()}
    other = ia3_zoo.write_ia3(tmp_path / "moved", own, "elsewhere")
    moved = mergelab.load(other, base=state)
    hashes = [load(experts["grey"]).base.weights_hash[:12], load(state).weights_hash[:12]]  # type: ignore[attr-defined]
    assert with_other(moved) == (
        f"The adapters 'grey' and 'other' stand on different bases, {shown(base)} (hash {hashes[0]}) and "
        f"'memory:memory' ({hashes[1]}): merge adapters of one base."
    )


def test_the_key_of_a_recipe(zoo: Path) -> None:
    plain = recipe(zoo, space="weights")
    assert plain.space is None and "space" not in plain.to_dict() and plain.hash != recipe(zoo).hash
    assert Recipe.from_yaml(recipe(zoo).to_yaml()) == recipe(zoo)
    with pytest.raises(RecipeError, match=r"'space' cannot be 'adapters'\. Did you mean 'adapter'\?"):
        recipe(zoo, space="adapters")
    report = preflight(recipe(zoo, merge_method="regmean", parameters={}))
    assert not report.ok and any("with no linear inputs of their own" in f.text for f in report.findings)
