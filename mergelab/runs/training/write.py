"""The model that a training run made, as a checkpoint like any other, with its record beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ... import __version__
from ...checkpoints import load, torch_dtype, write
from ...checkpoints.whole import whole_file
from ...engine.folder import copied_files
from ...tasks import Head
from ...training.ground import Ground
from ...training.work import tensors_of
from .record import Record

#: The recipe of the run, beside the weights; trained heads, by task.
RECIPE_FILE, HEADS_FILE, HEAD_FILE = "mergelab_training.json", "heads.safetensors", "head.safetensors"
_PAPERS = {"atm": "Alternating Tuning and Merging (Zhou et al., 2024), <https://arxiv.org/abs/2411.03055>",
           "joint": "joint multi-task training", "experts": "fine-tuning"}  # fmt: skip


def write_model(
    ground: Ground, record: Record, state: Mapping[str, Tensor], heads: Mapping[str, Head] | None, out: Path, *,
    task: str | None = None,
) -> Path:  # fmt: skip
    """``state`` over the base's weights, in the base's dtypes; replaces what an earlier run wrote at ``out``.

    ``task``: the model is that task's expert; its head is then ``head.safetensors``, as a zoo's experts have it.
    """
    source = load(ground.recipe.base_model)
    own = ground.model.own_names(list(source))

    def tensor(name: str) -> Tensor:
        found = state.get(own.get(name, name))
        given = source[name]
        return given if found is None else found.detach().cpu().to(torch_dtype(source.infos[name].dtype)).contiguous()

    files: dict[str, bytes | str] = {
        **copied_files(source),
        RECIPE_FILE: json.dumps({"recipe": record.recipe.to_dict(), "round": record.chosen, "costs": record.costs,
                                 "data_used": record.data_used}, indent=1, ensure_ascii=False) + "\n",
        "README.md": _card(record, task),
    }  # fmt: skip
    plan = {name: (info.dtype, tuple(info.shape)) for name, info in source.infos.items()}
    write(
        out, ((name, tensor(name)) for name in source.infos), plan, config=source.config, files=files,
        metadata={**source.aliases, "mergelab": __version__}, overwrite=True,
    )  # fmt: skip
    known = dict(heads or ground.heads)
    if task is not None:
        head = known[task]
        bias = torch.zeros(head.classes) if head.bias is None else head.bias
        _beside(out / HEAD_FILE, {"weight": head.weight.float().contiguous(), "bias": bias.float().contiguous()})
    elif heads is not None:
        _beside(out / HEADS_FILE, tensors_of(known))
    return out


def _beside(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Heads go in after the weights; a run that is killed in between is not done, and writes both again."""
    with whole_file(path, overwrite=True) as partial:
        save_file(dict(tensors), str(partial), metadata={"format": "pt"})


def _card(record: Record, task: str | None) -> str:
    what = f"An expert for {record.titles.get(task, task)}" if task else "A model for several tasks"
    rows = [f"| {record.titles.get(name, name)} | {100 * value:.1f} |"
            for name, value in (record.points[-1]["accuracy"] or {}).items()]  # fmt: skip
    table = ["", f"| task | accuracy, % ({record.watch.get('split')} pictures) |", "|---|---|", *rows] if rows else []
    return "\n".join([
        "---", "tags:", "  - merge", "  - mergelab", "---", "", f"# {what}", "",
        f"Made by {_PAPERS[record.kind]} with MergeLab {__version__}. Data used: {record.data_used}.", *table, "",
        "## The recipe", "", "```yaml", record.recipe.to_yaml().rstrip(), "```", "",
    ])  # fmt: skip
