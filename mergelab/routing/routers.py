"""Routers: from the features of an input to one logit for every task, and how they are trained, kept and read back.

A router learns from examples labelled with their task alone, never with a class, by the features of the shared model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from ..errors import RoutingError, suggest
from ..progress import Progress, Stop

if TYPE_CHECKING:
    from .features import Data

KINDS = ("mlp", "centroid", "knn", "uniform")
METRICS = ("euclidean", "cosine")
#: Trains one kind: the tensors that the kind keeps, and notes on how it went ("curves", "epoch", "warnings").
Fit: TypeAlias = (
    "Callable[[Data, RouterSettings, Progress | None, Stop | None], tuple[dict[str, Tensor], dict[str, Any]]]"
)
_MOST_TASKS, _MOST_NOTES = 4096, 4_000_000


class RouterError(RoutingError):
    """A router cannot be trained, read or used as asked: which task, tensor or row, and what to do."""


@dataclass(frozen=True)
class RouterSettings:
    """How to make a router. The defaults are those of the Twin-Merging paper, but for ``standardise``.

    Of every task at most ``per_task`` examples are taken (None: all), drawn under ``seed``; with ``balanced`` every
    task gives as many as the smallest one has (without, imbalanced tasks get the same weight in the loss).
    ``standardise``: features to zero mean and unit deviation on the router's training data (off: as the authors do).
    mlp: ``epochs``, ``batch``, ``rate`` (AdamW's, falls to 0), ``dropout``, ``hidden`` (None: twice the features),
    ``patience`` (epochs without a better validation score that end it; None: none). centroid: ``metric``. knn: ``k``.
    """

    kind: str = "mlp"
    epochs: int = 10
    batch: int = 256
    rate: float = 5e-4
    dropout: float = 0.5
    hidden: int | None = None
    standardise: bool = True
    balanced: bool = True
    per_task: int | None = 1000
    patience: int | None = 5
    metric: str = "euclidean"
    k: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("metric", self.metric, METRICS)):
            if value not in known:
                raise RouterError(f"Unknown {name} of router {value!r}.{suggest(str(value), known)}")
        for name, least, optional in _WHOLE:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31
            if not whole and not (value is None and optional):
                raise RouterError(f"Router: {name} must be a whole number of at least {least}, not {value!r}.")
        for name, low in (("rate", 1e-12), ("dropout", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value < 1:
                raise RouterError(f"Router: {name} must be a number from {low:g} to below 1, not {value!r}.")
        for name in ("standardise", "balanced"):
            if not isinstance(getattr(self, name), bool):
                raise RouterError(f"Router: {name} must be true or false, not {getattr(self, name)!r}.")

    @classmethod
    def from_dict(cls, given: object) -> RouterSettings:
        """Settings from a mapping that may name any of the fields; :class:`RouterError` for anything else."""
        if not isinstance(given, Mapping):
            raise RouterError(f"The router's settings must be a mapping, not {type(given).__name__}.")
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise RouterError(f"Unknown setting {name!r} of the router.{suggest(str(name), known)}")
        return cls(**{str(name): value for name, value in given.items()})

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


#: Whole-numbered settings: name, least value, whether None may stand for "no limit" or "as usual".
_WHOLE = (
    ("epochs", 1, False), ("batch", 2, False), ("hidden", 1, True), ("per_task", 1, True),
    ("patience", 1, True), ("k", 1, False), ("seed", 0, False),
)  # fmt: skip


class Router(Protocol):
    """What every router can do. Rows in, rows out: no row's logits depend on the other rows."""

    @property
    def kind(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order of the logits' columns."""

    @property
    def width(self) -> int:
        """Numbers in one input's features."""

    def logits(self, features: Tensor) -> Tensor:
        """Float32 ``[N, T]`` on the CPU from features ``[N, width]``; :class:`RouterError` if they do not fit."""

    def state(self) -> dict[str, Tensor]:
        """What was learnt; :func:`router_from` reads it back together with :meth:`about`."""

    def about(self) -> dict[str, object]:
        """Plain data for a JSON file: kind, names, width, settings, how it was trained, for which shared model."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """What all routers share: the tasks, the standardisation of the features, and notes on how it was made."""

    names: tuple[str, ...]
    width: int
    settings: RouterSettings
    tensors: Mapping[str, Tensor] = field(repr=False)  # the kind's own
    mean: Tensor = field(repr=False)  # [width] float32, taken off the features
    scale: Tensor = field(repr=False)  # [width] float32, then multiplied in; 0 where a feature never varied
    notes: Mapping[str, object] = field(repr=False, default_factory=dict)
    kind: ClassVar[str]

    def logits(self, features: Tensor) -> Tensor:
        x = check_features(features, self.width, f"The {self.kind} router")
        with torch.no_grad():
            return self.score((x - self.mean) * self.scale)

    def score(self, x: Tensor) -> Tensor:
        """Logits ``[N, T]`` of features that are checked and standardised already."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "scale": self.scale, **self.tensors}

    def about(self) -> dict[str, object]:
        known = {"kind": self.kind, "names": list(self.names), "width": self.width, "settings": self.settings.to_dict()}
        return {**self.notes, **known}

    @classmethod
    def check(cls, tensors: Mapping[str, Tensor], tasks: int, width: int) -> None:
        """Raise :class:`RouterError` unless ``tensors``, finite all, can be such a router's."""
        raise NotImplementedError


def check_features(features: Tensor, width: int, where: str) -> Tensor:
    """``features`` as float32 ``[N, width]`` on the CPU; ``where`` begins the message of a :class:`RouterError`."""
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise RouterError(f"{where} takes features of shape [inputs, {width}], not {found}.")
    if features.shape[1] != width:
        raise RouterError(
            f"{where} is for features of width {width}, but these have {features.shape[1]}: the shared model changed "
            "since, so the router is stale. Train it again on the features of this shared model."
        )
    if not features.is_floating_point():
        raise RouterError(f"{where} takes real numbers as features, not {features.dtype}.")
    x = features.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(dim=1).nonzero()[0])
        raise RouterError(f"{where}: the features of row {row} are not finite. Look for NaN in the model or the input.")
    return x


def check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`RouterError` unless ``tensors`` are exactly those of ``shapes``; -1 stands for any size but 0."""
    for name in [*shapes, *tensors]:
        if name not in tensors or name not in shapes:
            problem = "lacks" if name not in tensors else "has an unknown tensor"
            raise RouterError(f"The router's file {problem} {name!r}. Train the router again.")
        found, expected = tuple(tensors[name].shape), shapes[name]
        fits = all(n == size or (size == -1 and n > 0) for n, size in zip(found, expected, strict=False))
        if len(found) != len(expected) or not fits:
            wanted = "×".join("any" if size == -1 else str(size) for size in expected)
            raise RouterError(
                f"The router's tensor {name!r} has shape {list(found)}, expected {wanted}. Train it again."
            )


def train_router(
    kind: str | None,
    features: Mapping[str, Tensor],
    validation: Mapping[str, Tensor] | None = None,
    settings: RouterSettings | None = None,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
    source: str = "pooled",
    shared: str = "",
) -> Router:
    """A router that tells the tasks (the keys of ``features``, in this order) by their features ``[N_t, d]``.

    ``kind`` wins over ``settings.kind`` (None: the settings decide). ``validation`` (same keys) chooses the epoch of an
    mlp and is scored for the notes; without it the last epoch stays. ``source`` (``"pooled"`` or ``"layer L"``) says
    which features these are, ``shared`` which shared model (a sha256). Data and ``settings.seed`` alone decide the
    result; no global random state is read or changed. Raises :class:`RouterError` for a task without examples, widths
    that differ and features that are not finite, and :class:`~mergelab.errors.Cancelled`.
    """
    from .features import prepare, scores

    settings = settings or RouterSettings()
    if kind is not None and kind != settings.kind:
        settings = replace(settings, kind=kind)
    learnt, fit = _maker(settings.kind)
    with torch.inference_mode(False):
        data = prepare(features, validation or {}, settings)
        tensors, how = fit(data, settings, progress, stop)
    router = learnt(data.names, data.width, settings, tensors, data.mean, data.scale)
    with torch.no_grad():
        measured = scores(router.score, data)
    warnings = [*data.warnings, *how.pop("warnings", [])]
    notes = {**data.counts(), "seed": settings.seed, "curves": {}, "epoch": None, **how, **measured}
    return replace(router, notes={**notes, "warnings": warnings, "features": source, "shared": shared})


def router_from(state: Mapping[str, Tensor], about: object) -> Router:
    """The router that :meth:`Router.state` and :meth:`Router.about` describe; nothing in them is trusted.

    Raises :class:`RouterError` for tensors that are missing, unknown, of a wrong shape or not finite, and for anything
    in the description that does not fit."""
    if not isinstance(about, Mapping):
        raise RouterError(f"The router's description must be a mapping, not {type(about).__name__}. Train it again.")
    notes = _plain(about)
    kind, names, width = notes.pop("kind", None), notes.pop("names", None), notes.pop("width", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise RouterError(f"Unknown kind of router {kind!r}.{suggest(str(kind), KINDS)}")
    plain = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not plain or not 1 <= len(names) <= _MOST_TASKS or len(set(names)) != len(names):
        raise RouterError(f"The router's names must be 1 to {_MOST_TASKS} task names, none empty, none twice.")
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise RouterError(f"The router's width must be a whole number of at least 1, not {width!r}.")
    settings = RouterSettings.from_dict(notes.pop("settings", {"kind": kind}))
    if settings.kind != kind:
        raise RouterError(f"The router is said to be {kind!r}, but its settings are for {settings.kind!r}.")
    tensors = {str(name): _checked(str(name), tensor) for name, tensor in state.items()}
    own = {name: tensor for name, tensor in tensors.items() if name not in ("mean", "scale")}
    check_shapes({n: t for n, t in tensors.items() if n not in own}, {"mean": (width,), "scale": (width,)})
    if bool((tensors["scale"] < 0).any()):
        raise RouterError("The router's tensor 'scale' has negative numbers. Train the router again.")
    learnt, _ = _maker(kind)
    learnt.check(own, len(names), width)
    return learnt(tuple(names), width, settings, own, tensors["mean"], tensors["scale"], notes)


def _checked(name: str, tensor: object) -> Tensor:
    """A finite tensor on the CPU: "labels" of int64, all others of float32."""
    kind = torch.int64 if name == "labels" else torch.float32
    if not isinstance(tensor, Tensor) or tensor.is_sparse or tensor.is_floating_point() != kind.is_floating_point:
        raise RouterError(f"The router's {name!r} is no tensor that can be read as {kind}. Train the router again.")
    plain = tensor.detach().to("cpu", kind).contiguous()
    if not bool(torch.isfinite(plain).all()):
        raise RouterError(f"The router's tensor {name!r} has numbers that are not finite. Train the router again.")
    return plain


def _plain(about: Mapping[str, object]) -> dict[str, Any]:
    """A copy of ``about`` made of JSON's types alone, with the notes that others read in the types they expect."""
    try:
        text = json.dumps(about if isinstance(about, dict) else dict(about), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RouterError(f"The router's description is no plain JSON data: {error}.") from error
    if len(text) > _MOST_NOTES:
        raise RouterError(f"The router's description has more than {_MOST_NOTES} characters. Train it again.")
    plain: dict[str, Any] = json.loads(text)
    for name, kinds in _NOTES.items():
        if name in plain and not isinstance(plain[name], kinds):
            raise RouterError(f"The router's description has {name!r} as {type(plain[name]).__name__}. Train it again.")
    plain["warnings"] = [str(warning) for warning in plain.get("warnings", [])]
    return plain


_NOTES: dict[str, tuple[type, ...]] = {
    "shared": (str,), "features": (str,), "warnings": (list,), "curves": (dict,), "counts": (dict,), "given": (dict,),
    "held_out": (dict,), "seed": (int,), "epoch": (int, type(None)),
}  # fmt: skip


def _maker(kind: str) -> tuple[type[Fitted], Fit]:
    from .mlp import MlpRouter, fit_mlp
    from .neighbours import CentroidRouter, KnnRouter, UniformRouter, fit_centroid, fit_knn

    makers: dict[str, tuple[type[Fitted], Fit]] = {
        "mlp": (MlpRouter, fit_mlp),
        "centroid": (CentroidRouter, fit_centroid),
        "knn": (KnnRouter, fit_knn),
        "uniform": (UniformRouter, lambda *_: ({}, {})),
    }
    return makers[kind]
