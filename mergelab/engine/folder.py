"""A merge written to disk: weights, the files that belong to the base, the recipe and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..progress import Progress, Stop
from ..recipe import ModelEntry, Recipe
from .adapters import ADAPTER
from .needs import kinds_of
from .plan import Plan
from .solve_log import SOLVE_FILE, recipe_init, solve_json
from .stream import stream

RECIPE_FILE = "mergelab_recipe.yaml"
#: What may be copied from the base's folder; nothing that could run (``*.py``) and nothing huge.
_COPIED = (
    "preprocessor_config.json", "processor_config.json", "image_processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "generation_config.json", "chat_template.json", "chat_template.jinja",
)  # fmt: skip
_COPY_BYTES = 64 * 2**20
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def merge_to_folder(
    plan: Plan,
    out: str | Path,
    *,
    device: str | torch.device = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    max_shard_bytes: float = 5e9,
    extra: Mapping[str, bytes | str] | None = None,
    data: str | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Path:
    """Merge into a new folder ``out`` in the Hugging Face layout and return it; all or nothing.

    Beside the weights go the base's configuration, its preprocessor and tokenizer files where they are on this machine,
    the recipe (``mergelab_recipe.yaml``), a model card, ``extra`` files by name, and for a matched method what its
    solver did to every tensor (``mergelab_solve.json``). In the space of adapters it is an adapter's folder, which
    loads with its base. ``data``: what the card says was used, where the plan cannot
    know. Raises CheckpointError when ``out`` holds something already (unless ``overwrite``) or the disk is full,
    MethodError as `stream` does, Cancelled after ``stop``.
    """
    from ..checkpoints import write

    recipe = written_recipe(plan)
    files: dict[str, bytes | str] = {**copied_files(plan.reference), **(extra or {})}
    files[RECIPE_FILE] = recipe.to_yaml()
    files["README.md"] = card(plan, recipe, data)
    metadata = {**plan.aliases, "mergelab": __version__, "mergelab_recipe": json.dumps(recipe.to_dict())}
    log: list[Mapping[str, Any]] = []
    return write(
        out,
        stream(plan, threads=threads, device=device, progress=progress, stop=stop, log=log.append),
        plan.outputs,
        config=written_config(plan),
        adapter=plan.models[0].settings() if plan.space == ADAPTER else None,
        files=files,
        late=(lambda: {SOLVE_FILE: solve_json(plan, log)}) if plan.method.kind == "matched" else None,
        metadata=metadata,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
        stop=stop,
    )


def written_recipe(plan: Plan) -> Recipe:
    """The recipe that makes these weights again: as given, with Hub sources pinned to the commits that were read.

    A plan that was made without a recipe is written out in full, every parameter included.
    """
    given = plan.recipe
    base = None if plan.base is None else _source(plan.base, given.base_model if given else None)
    if given is not None:
        read = dict(zip(plan.names, plan.models, strict=True))
        entries = tuple(
            replace(entry, model=_source(read[name], entry.model)) if name in read else entry
            for name, entry in zip(given.names, given.models, strict=True)
        )
        return given.replace(
            models=entries, base_model=base, statistics=plan.statistics_from or given.statistics
        )  # fmt: skip
    own = [parameter.name for parameter in plan.method.parameters if parameter.per_model]
    return Recipe(
        merge_method=plan.method.name,
        models=tuple(
            ModelEntry(_source(model, None), name, {key: plan.values[key][index] for key in own})
            for index, (name, model) in enumerate(zip(plan.names, plan.models, strict=True))
        ),
        base_model=base,
        parameters={key: value for key, value in plan.values.items() if key not in own},
        dtype="float64" if plan.compute == torch.float64 else None,
        out_dtype=_NAMES[plan.out_dtype] if plan.out_dtype else None,
        seed=plan.seed,
        init=recipe_init(plan),
        statistics=plan.statistics_from,
        space=plan.space,
    )


def _source(checkpoint: Any, given: str | None) -> str:
    """The source as it was written, unless it is on the Hub: then the commit that was read."""
    source = str(checkpoint.source)
    return source if given is None or source.startswith("hub:") else given


def copied_files(reference: Any) -> dict[str, bytes]:
    """Preprocessor and tokenizer files from the reference's folder, by name."""
    folder = getattr(reference, "folder", None)
    out: dict[str, bytes] = {}
    if folder is None:
        return {}
    for name in _COPIED:
        path = Path(folder) / name
        if path.is_file() and path.stat().st_size <= _COPY_BYTES:
            out[name] = path.read_bytes()
    return out


def written_config(plan: Plan) -> dict[str, Any] | None:
    """The reference's configuration with the dtype that comes out."""
    config = plan.reference.config
    if config is None:
        return None
    codes = {plan.code(item) for item in plan.items if item.merge}
    if len(codes) != 1:
        return dict(config)
    name = _NAMES[codes.pop()]
    return {key: name if key in ("dtype", "torch_dtype") else value for key, value in config.items()}


def card(plan: Plan, recipe: Recipe, data: str | None = None) -> str:
    """The model card: front matter that the Hub reads, the parents, the recipe word for word, its hash."""
    parents = [("base", recipe.base_model)] if recipe.base_model is not None else []
    parents += list(zip(plan.names, (entry.model for entry in recipe.models), strict=True))
    hub = list(dict.fromkeys(source[4:].partition("@")[0] for _, source in parents if source.startswith("hub:")))
    matter = ["tags:", "  - merge", "  - mergelab"]
    if hub:
        matter += ["base_model:", *(f"  - {json.dumps(name)}" for name in hub), "base_model_relation: merge"]
    yaml = recipe.to_yaml()
    fence = "```"
    while fence in yaml:
        fence += "`"
    rows = [f"| {_cell(name)} | {_cell(source)} |" for name, source in parents]
    return "\n".join([
        "---", *matter, "---", "",
        f"# {_cell(recipe.title or plan.method.title)}", "",
        f"{plan.method.title}: {plan.method.summary} ({plan.method.paper}, <{plan.method.url}>)", "",
        f"Made with MergeLab {__version__}; computed in {str(plan.compute).removeprefix('torch.')}. Data used for the "
        f"merge itself: {data or data_used(plan)}.", "",
        "| model | source |", "|---|---|", *rows, "",
        "The licences of all of them apply.", "",
        "## Recipe", "", f"Hash `{recipe.hash}`", "", f"{fence}yaml", yaml.rstrip("\n"), fence, "",
    ])  # fmt: skip


def data_used(plan: Plan) -> str:
    """What data went into the merge itself, in words."""
    found = [s for s in plan.statistics if s is not None]
    if not found or not kinds_of(plan):
        return "none" if plan.method.kind == "matched" else plan.method.data
    counts = sorted({s.examples for s in found})
    splits = sorted({s.split for s in found if s.split})
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    kind = "labelled" if any(s.fisher for s in found) and set(kinds_of(plan)) != {"gram"} else "unlabelled"
    return f"{kind}, {many} examples a task" + (f" from the split {', '.join(splits)}" if splits else "")


def _cell(text: str) -> str:
    """Untrusted text as one harmless table cell or heading."""
    return "".join(f"\\{c}" if c in r"\|`*_[]<>#" else c if c.isprintable() else " " for c in text)
