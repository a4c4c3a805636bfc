"""Text encoders from Python: statistics with padding masks, merges on disk, iterations chosen by one's own measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import mergelab
from mergelab.calibration import Batch, collect_stats
from mergelab.cli import main
from mergelab.recipe import Recipe
from mergelab.runs.choose import choose
from mergelab.statistics import write

transformers = pytest.importorskip("transformers")
TASKS = ("ant", "bee")
SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 12, "max_position_embeddings": 8, "num_labels": 3}  # fmt: skip
QUERY = "bert.encoder.layer.0.attention.self.query"


def sentences(task: str, count: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids of a task's half of the vocabulary, the mask of their padding, and labels that follow from them."""
    random = torch.Generator().manual_seed(TASKS.index(task))
    ids = torch.randint(1, 10, (count, 6), generator=random) + 9 * TASKS.index(task)
    lengths = torch.randint(2, 7, (count, 1), generator=random)
    mask = (torch.arange(6) < lengths).long()
    return ids * mask, mask, ids[:, 0] % 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny BERT and an expert for each task, as transformers saves them; statistics of both beside them."""
    place = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    base.save_pretrained(place / "base")
    (place / "statistics").mkdir()
    for task in TASKS:
        model = transformers.BertForSequenceClassification.from_pretrained(place / "base")
        ids, mask, labels = sentences(task)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(25):
            optimiser.zero_grad()
            model(ids, attention_mask=mask, labels=labels).loss.backward()
            optimiser.step()
        model.eval().save_pretrained(place / task)
        batches = (Batch({"input_ids": ids[n : n + 5], "attention_mask": mask[n : n + 5]}, labels[n : n + 5],
                         mask[n : n + 5]) for n in range(0, len(ids), 5))  # fmt: skip
        found = collect_stats(model, batches, kinds={"kfac", "diag"}, task=task, name=task, split="val",
                              weights_hash=mergelab.load(place / task).weights_hash)  # fmt: skip
        write(found, place / "statistics" / f"{task}.safetensors")
    return {name: place / name for name in ("base", "statistics", *TASKS)}


def test_regmean_of_text_encoders_is_least_squares_over_unmasked_tokens(folders: dict[str, Path]) -> None:
    experts = {task: folders[task] for task in TASKS}
    found = mergelab.merge("regmean", experts, folders["base"], statistics=folders["statistics"], off_diagonal=1.0,
                           dtype="float64", out_dtype="float32", ridge=0.0)  # fmt: skip
    rows, targets = [], []
    for task in TASKS:
        model = transformers.BertForSequenceClassification.from_pretrained(folders[task]).eval()
        ids, mask, _ = sentences(task)
        seen: list[Tensor] = []
        hook = model.get_submodule(QUERY).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(ids, attention_mask=mask)
        hook.remove()
        tokens = seen[0][mask.bool()].double()
        # each task counts alike however many tokens it has: its Gram is a mean
        rows.append(tokens / len(tokens) ** 0.5)
        targets.append(rows[-1] @ model.state_dict()[f"{QUERY}.weight"].double().T)
    expected = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets)).solution.T
    torch.testing.assert_close(found[f"{QUERY}.weight"].double(), expected, rtol=1e-3, atol=1e-4)


def test_mats_of_text_encoders_from_the_command_line(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    document = {
        "merge_method": "mats", "base_model": str(folders["base"]), "statistics": str(folders["statistics"]),
        "models": [{"model": str(folders[task]), "name": task} for task in TASKS],
        "init": {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.5}}, "parameters": {"iterations": 5},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    assert main(["merge", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert "by cg" in capsys.readouterr().out
    merged = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out")
    ids, mask, _ = sentences("ant")
    assert merged(ids, attention_mask=mask).logits.isfinite().all()


def test_iterations_are_chosen_by_a_measure_of_ones_own(folders: dict[str, Path]) -> None:
    recipe = Recipe.from_dict({
        "merge_method": "mats", "base_model": str(folders["base"]), "statistics": str(folders["statistics"]),
        "models": [{"model": str(folders[task]), "name": task} for task in TASKS], "init": "average",
    })  # fmt: skip
    model = transformers.BertForSequenceClassification.from_pretrained(folders["base"]).eval()
    asked: list[dict[str, float]] = []

    def measure(state: Any) -> dict[str, float]:
        model.load_state_dict(dict(state))
        scores = {}
        for task in TASKS:
            ids, mask, labels = sentences(task)
            with torch.no_grad():
                scores[task] = float((model(ids, attention_mask=mask).logits.argmax(-1) == labels).float().mean())
        asked.append(scores)
        return scores

    chosen = choose(measure, recipe, {"iterations": (2, 8)})
    means = [sum(scores.values()) / 2 for scores in asked]
    assert len(asked) == 3, "0 iterations are always tried"
    best = (0, 2, 8)[means.index(max(means))]
    assert chosen.recipe.parameters["iterations"] == best
