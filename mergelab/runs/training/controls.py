"""How task vectors lie to each other beside fair controls, and how much of an expert's way its first epoch is.

Vectors of late rounds of alternating are what is left once the tasks' common part has been learnt; that they are
nearly orthogonal says little when they are held against whole task vectors of one-shot experts. So four things stand
beside each other, each with its norms: (a) experts tuned apart after every epoch, (b) the vectors of every round,
(c) what a task has contributed up to a round and how it lies to the drift that all share, and (d) experts tuned for one
round from the *joint* model, where what tasks share has been learnt too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...analysis import Similarity
from ...analysis.products import State, gram
from ...errors import CheckpointError, MergeLabError, RecipeError
from ...executor import Executor
from ...progress import Progress, Stop
from ...training.recipe import TrainRecipe
from .iterates import CONTROL, from_joint
from .record import RECORD_FILE, Record
from .run import train

#: The first epoch's share of the sum of epochs' gradient norms, and the number of epochs, in runs of ATM's authors
#: (ViT-B/16, one seed, their own epochs for each task; from the log that they published).
REFERENCE = {"GTSRB": (0.68, 11), "MNIST": (0.42, 5), "SVHN": (0.40, 4), "CIFAR100": (0.32, 6), "EuroSAT": (0.27, 12),
             "RESISC45": (0.23, 15), "DTD": (0.12, 76)}  # fmt: skip
_FIRST = 5


def first_epoch_share(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By task, how large the first epoch is within all epochs of an expert.

    ``record``: a run of experts, as :meth:`Record.to_dict` gives it. Of each task: ``epochs``, the mean norm of a
    step's gradient (before clipping) in each of its E epochs; ``norm``, the first one's share g_1 / Σ_e g_e;
    ``first_five``, the shares of the first five; ``moved``, the first epoch's share in the sum of the distances
    ‖θ_e − θ_{e−1}‖ that the weights went in the epochs; ``even``, 1/E. A share is None where the sum is 0.

    That the first epoch dominates (On Task Vectors and Gradients, arXiv 2508.16082, by ATM's authors) is true only
    relative to any other single epoch:

    ===========  =====  =====  ====  ========  =======  ========  ====
    ViT-B/16     GTSRB  MNIST  SVHN  CIFAR100  EuroSAT  RESISC45  DTD
    ===========  =====  =====  ====  ========  =======  ========  ====
    first epoch  0.68   0.42   0.40  0.32      0.27     0.23      0.12
    epochs       11     5      4     6         12       15        76
    ===========  =====  =====  ====  ========  =======  ========  ====

    In all but one of these the other epochs together are larger, so the even split belongs beside the share.

    Raises MergeLabError for a run of another kind, without a finished round, or whose rounds cut epochs in parts.
    """
    if record.get("kind") != "experts":
        raise MergeLabError(
            "The first epoch's share is of experts that are trained apart; compare with one_shot, or train experts."
        )
    if not record["rounds"]:
        raise MergeLabError("No expert has finished a round yet, so there is no epoch to look at; go on with the run.")
    if record["recipe"].get("budget", {}).get("steps"):
        raise MergeLabError(
            "These experts were trained in rounds of steps, which cut epochs in parts; train them in epochs to see "
            "the first one's share."
        )
    out = {}
    for task in record["tasks"]:
        epochs = [epoch for one in record["rounds"] for epoch in one["courses"][task]["epochs"]]
        norms = [epoch["norm"] for epoch in epochs]
        shares, moved = _shares(norms), _shares([epoch["moved"] for epoch in epochs])
        out[task] = {"norm": shares[0], "moved": moved[0], "epochs": norms, "first_five": shares[:_FIRST],
                     "even": 1 / len(epochs)}  # fmt: skip
    return out


def _shares(values: Sequence[float | None]) -> list[float | None]:
    known = [value for value in values if value is not None]  # a record has None for what was not finite
    total = math.fsum(known)
    return [v / total if v is not None and total > 0 and len(known) == len(values) else None for v in values]


# ---- cosines ---------------------------------------------------------------------------------------------------------


def orthogonality(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for every round of every run whose record holds cosines of task vectors.

    ``records``: name -> :meth:`Record.to_dict` of runs of kind atm (vectors from the round's own base) or experts
    (from what they started from; after round k of one epoch they are one-shot experts of k epochs). Rows: ``run``,
    ``kind``, ``round``, ``epochs`` (trained a task by then), ``mean_abs`` (mean |cos| over pairs of tasks; None where
    there is none), ``cosines`` [T][T], ``norms`` by task and ``norm``, their mean.
    """
    rows = []
    for name, record in records.items():
        epochs = {point["round"]: point["epochs"] for point in record["points"]}
        for one in record["rounds"]:
            if "cosines" not in one:
                continue
            norms = one["norms"]
            rows.append({
                "run": name, "kind": record["kind"], "round": one["round"], "epochs": epochs.get(one["round"]),
                "mean_abs": mean_absolute(one["cosines"]), "norm": math.fsum(norms.values()) / len(norms),
                "norms": dict(norms), "cosines": one["cosines"],
            })  # fmt: skip
    return rows


def mean_absolute(cosines: Sequence[Sequence[float | None]]) -> float | None:
    """Mean |cos| over the pairs of different vectors; None where there is none."""
    return Similarity((), tuple(map(tuple, cosines)), ()).mean_absolute()


def drift(path: Sequence[State], experts: Sequence[Mapping[str, State]]) -> list[dict[str, Any]]:
    """How every round's vectors lie to where the rounds go.

    Args:
        path: θ_0 … θ_K, the start and the model after every round.
        experts: of round k = 1 … K, task -> θ_t^k, tuned from θ_{k−1}.

    A row a round k: ``step`` ‖θ_k − θ_{k−1}‖; ``to_previous``, the cosine of that step and the one before it;
    ``from_start`` ‖θ_k − θ_0‖; ``to_drift`` by task, the cosine of τ_t^k = θ_t^k − θ_{k−1} and the drift
    θ_{k−1} − θ_0 that all tasks share (None in round 1); ``contributed``, cosines [T][T], ``norms`` by task and
    ``mean_abs`` of Σ_{j ≤ k} τ_t^j, what each task has given by then (with the mean as aggregation and α = 1 their
    mean is the drift; they are as many epochs from θ_0 as one-shot experts are after k·e epochs).

    In float64 from the Gram matrix of all models' differences from θ_0; one tensor of each is held at a time. Raises
    CheckpointError where models do not fit together or rounds are missing.
    """
    if len(path) != len(experts) + 1 or not experts:
        raise CheckpointError(
            f"{len(experts)} rounds need {len(experts) + 1} models from the start on, not {len(path)}."
        )
    tasks = tuple(experts[0])
    named = [(f"the model after round {k}", state) for k, state in enumerate(path)]
    named += [(f"{task} of round {k}", one[task]) for k, one in enumerate(experts, 1) for task in tasks]
    differences = torch.eye(len(named), dtype=torch.float64)
    differences[:, 0] -= 1
    products = gram(named, differences)

    def unit(place: int) -> Tensor:
        return torch.eye(len(named), dtype=torch.float64)[place]

    def vector(k: int, number: int) -> Tensor:
        return unit(len(path) + (k - 1) * len(tasks) + number) - unit(k - 1)

    def table(vectors: Sequence[Tensor]) -> tuple[list[list[float | None]], list[float]]:
        rows = torch.stack(list(vectors))
        return cosines_of(rows @ products @ rows.T)

    out, given = [], [torch.zeros(len(named), dtype=torch.float64) for _ in tasks]
    for k in range(1, len(path)):
        step, now = unit(k) - unit(k - 1), [vector(k, i) for i in range(len(tasks))]
        before = unit(k - 1) - unit(k - 2) if k > 1 else torch.zeros_like(step)
        given = [total + tau for total, tau in zip(given, now, strict=True)]
        steps, lengths = table([step, before, unit(k)])
        lie, _ = table([unit(k - 1), *now])
        cosines, norms = table(given)
        out.append({
            "round": k, "step": lengths[0], "to_previous": steps[0][1], "from_start": lengths[2],
            "to_drift": dict(zip(tasks, lie[0][1:], strict=True)),
            "contributed": {"cosines": cosines, "norms": dict(zip(tasks, norms, strict=True)),
                            "mean_abs": mean_absolute(cosines)},
        })  # fmt: skip
    return out


def cosines_of(products: Tensor) -> tuple[list[list[float | None]], list[float]]:
    """Cosines [n][n] and norms [n] of vectors whose inner products are given; None where one is zero."""
    norms = products.diagonal().clamp(min=0).sqrt().tolist()
    rows: list[list[float | None]] = []
    for i, a in enumerate(norms):
        pairs = [float(products[i, j]) / (a * b) if a > 0 and b > 0 else None for j, b in enumerate(norms)]
        rows.append([None if value is None else max(-1.0, min(1.0, value)) for value in pairs])
    return rows, norms


# ---- experts from the joint model ------------------------------------------------------------------------------------


def joint_control(joint: Record, model: str | Path) -> TrainRecipe:
    """The recipe of control (d): the joint run's own, but an expert of each task for one round from its ``model``.

    A round has as many epochs or steps as a round of the run, and the rate's schedule runs over it alone. Raises
    RecipeError where heads were trained along: a checkpoint does not bring them, so the experts would first learn new
    ones.
    """
    recipe = joint.recipe
    if recipe.train != "joint":
        raise RecipeError(f"The control starts from a joint model; this run is {recipe.train}.")
    if recipe.tuning.heads == "trained":
        raise RecipeError("Heads were trained along with the joint model, so experts cannot start where it ended.")
    return recipe.replace(
        train="experts", start=str(model), budget=replace(recipe.budget, rounds=1), combine="mean", keep="last",
        keep_optimiser=False, title=None,
    )  # fmt: skip


def train_control(
    folder: str | Path, *, executor: Executor | None = None, device: str = "auto", progress: Progress | None = None,
    stop: Stop | None = None,
) -> Record:  # fmt: skip
    """Train control (d) of a comparison into ``folder/control``, or go on with it; its record holds the cosines. One of
    an earlier joint model is trained anew.

    Raises CheckpointError where the comparison has no finished joint run, RecipeError as :func:`joint_control` does.
    """
    place = Path(folder).expanduser().resolve()
    model = place / "joint" / "model"
    if not model.is_dir():
        raise CheckpointError(f"{place.name} has no finished joint run, from which the control would start.")
    joint, out = Record.read(place / "joint"), place / CONTROL
    stale = (out / RECORD_FILE).is_file() and not from_joint(Record.read(out), joint)
    return train(
        joint_control(joint, model), out, resume=not stale, overwrite=stale, executor=executor, device=device,
        progress=progress, stop=stop,
    )  # fmt: skip
