"""Statistics of one expert from its own examples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StatisticsError
from ..progress import Progress, Stop, report
from ..statistics import TaskStatistics
from .capture import MaskFunction
from .inputs import as_batch
from .labels import CLASS_LIMIT, Labels
from .rest import Forward
from .wanted import BLOCK_LIMIT, MAX_OUTPUTS, Names, Options, kinds_of
from .work import Work

#: Examples a task unless told (Tam et al. 2024 stop at so many).
EXAMPLES = 1000


def collect_stats(
    module: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
    *,
    kinds: Collection[str],
    fisher: str = "empirical",
    max_examples: int | None = EXAMPLES,
    mask: MaskFunction | None = None,
    names: Names | None = None,
    conv: bool = False,
    max_outputs: int = MAX_OUTPUTS,
    block_limit: int = BLOCK_LIMIT,
    class_limit: int = CLASS_LIMIT,
    leave: Mapping[str, str] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    task: str = "task",
    name: str = "",
    weights_hash: str | None = None,
    split: str = "",
    suite: str = "",
    meta: Mapping[str, Any] | None = None,
    total: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> TaskStatistics:
    """Collect statistics of a module's tensors (Tam, Bansal and Raffel, TMLR 2024; mats: A, G, Fisher).

    Args:
        module: the model with an expert's weights. It is used in evaluation mode and left as it was.
        batches: :class:`Batch`, or pairs (inputs, labels). How examples are batched changes nothing.
        forward: ``forward(module, inputs)`` -> logits [N, K], or [N, T, K] for tokens (then an example's log-likelihood
            is the mean over its target tokens). By default the module is called, and its ``logits`` taken.
        kinds: of ``gram`` (A = mean of x xᵀ over the rows of a linear layer's inputs; forward passes only), ``kfac``
            (A, and G = mean of g gᵀ over gradients on its outputs), ``diag`` (mean of squared per-example gradients of
            every parameter), ``block`` (mean of their outer products, vectors only).
        fisher: at which labels gradients are taken: ``empirical``, ``sampled`` (one an example, seeded) or ``exact``
            (the expectation; one backward pass a class, at most ``class_limit`` of them).
        mask: a function of (layer, batch) -> mask [N, T] or None, instead of each batch's own ``mask``. Masked rows are
            in no sum and no count.
        max_examples: the first so many; None for all.
        names: only these parameters (names, or a function of a name).
        conv: also Grams (and G) of convolutions, over unfolded patches.
        leave: parameters that are left out -> the reason, which goes to ``.skipped``; but where no other parameter has
            one of the kinds, they have it.
        max_outputs: layers with more outputs keep A only. block_limit: the largest tensor with a full block.
        dtype: float32 or float64, of model, sums and result. device: where to work (default: where the module is).
        task, name, weights_hash, split, suite, meta: go to the header; the hash is by default that of the module's
            tensors as they are. total: examples that will come, for the progress.

    Modules that have no statistics, and why, are in ``.skipped``. Raises :class:`StatisticsError`: no batches, no
    labels for the empirical Fisher, a mask that does not fit, outputs without gradients, NaN or infinity (naming the
    layer), a block above the limit, Grams of (IA)³ vectors.
    """
    options = options_of(
        kinds, names=names, conv=conv, max_outputs=max_outputs, block_limit=block_limit, leave=leave or {}
    )
    if max_examples is not None and max_examples < 1:
        raise StatisticsError(f"At least one example is needed, and max_examples is {max_examples}.")
    hashed = weights_hash if weights_hash is not None else _hash(module)
    labels = Labels(fisher, seed, class_limit) if options.fisher else None
    expected = max_examples if total is None else total if max_examples is None else min(total, max_examples)
    work = Work(module, forward or logits_of, options, labels, mask=mask, dtype=dtype, device=device)
    with work.open():
        for item in batches:
            if stop is not None:
                stop.check()
            batch = as_batch(item)
            if max_examples is not None:
                batch = batch.first(max_examples - work.examples)
            work.run(batch)
            report(progress, work.examples, expected or work.examples, f"Statistics of {task}")
            if work.examples == max_examples:
                break
        if not work.examples:
            raise StatisticsError(f"There are no examples of {task!r}: the batches are empty.")
        blocks, skipped = work.finish()
    said = {**(meta or {}), **work.notes()}
    return TaskStatistics(
        task, blocks, name=name, weights_hash=hashed, split=split, examples=work.examples,
        fisher=fisher if options.fisher else "", seed=seed, suite=suite, meta=said, skipped=skipped,
    )  # fmt: skip


def options_of(kinds: Collection[str], **options: Any) -> Options:
    """Checked options (``names``, ``conv``, ``max_outputs``, ``block_limit``, ``leave``)."""
    return Options(kinds_of(kinds), **options)


def logits_of(module: nn.Module, inputs: Any) -> Tensor:
    """Call a module with a tensor, or a mapping as keywords, and take its logits."""
    output = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    return output if isinstance(output, Tensor) else output.logits


def _hash(module: nn.Module) -> str:
    from ..checkpoints import load

    return load({name: t.detach() for name, t in module.state_dict().items()}, name="module").weights_hash
