"""The plan of a merge: the method with checked values, checkpoints that fit together, what comes out. From headers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import methods
from ..errors import MethodError, RecipeError, suggest
from ..methods import Method
from ..recipe import DTYPES, Recipe, readable_name
from ..recipe.recipe import SPACES
from .adapters import ADAPTER, WEIGHTS, vectors_of
from .needs import begin, gather
from .shared import Shared, shared_by
from .structure import FLOATS, Item, Structure, compare

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint
    from ..statistics import TaskStatistics

_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Plan:
    """Everything a merge needs, checked. Make one with `plan` or `plan_recipe`; `with_parameters` is cheap.

    ``keys`` identify the models for seeded randomness; ``outputs`` maps tensor names to what comes out. A checkpoint
    must not change while a plan over it is in use.
    """

    method: Method
    names: tuple[str, ...]
    models: tuple[Any, ...]
    base: Any | None
    values: Mapping[str, Any]
    items: tuple[Item, ...]
    aliases: Mapping[str, str]
    keys: tuple[str, ...]
    compute: torch.dtype = torch.float32
    out_dtype: str | None = None
    seed: int = 0
    recipe: Recipe | None = None
    #: statistics of every model, in the models' order (empty: the method needs none)
    statistics: tuple[TaskStatistics | None, ...] = ()
    #: the folder that they were read from, where it was one
    statistics_from: str | None = None
    #: the merge that the method starts from: a plan over the same models, a checkpoint, "base", or None for the average
    start: Plan | Checkpoint | Literal["base"] | None = None
    #: learned coefficients: tensor name -> one per model
    learned: Mapping[str, Sequence[float]] | None = None
    #: "weights", or "adapter": the models are the vectors of (IA)³ adapters, the base is all ones
    space: str = WEIGHTS
    #: sentences for a person about the statistics (mixed estimates, splits, numbers of examples)
    warnings: tuple[str, ...] = ()
    shared: Shared = field(default_factory=Shared, repr=False, compare=False)

    @property
    def reference(self) -> Any:
        """The checkpoint that buffers, dtypes and the configuration are taken from: the base, or the first model."""
        return self.base if self.base is not None else self.models[0]

    @property
    def outputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype code, shape) of every tensor that is written; tied names are not among them."""
        return {item.name: (self.code(item), item.shape) for item in self.items}

    def code(self, item: Item) -> str:
        """The dtype code in which a tensor comes out."""
        return self.out_dtype if self.out_dtype and item.dtype in FLOATS else item.dtype

    def bytes_of(self, unit: Sequence[Item]) -> int:
        """The exact bytes of some tensors as they come out."""
        from ..checkpoints import nbytes_of

        return sum(nbytes_of(self.code(item), item.shape) for item in unit)

    def with_parameters(
        self,
        parameters: Mapping[str, Any],
        per_model: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        method: str | Method | None = None,
        seed: int | None = None,
    ) -> Plan:
        """The same checkpoints with other values, or another method: nothing is read or compared again.

        Statistics, start and learned coefficients stay; StatisticsError where the new values need other statistics.
        """
        chosen = self.method if method is None else methods.get(method)
        values = chosen.resolve(parameters, self.names, per_model)
        chosen.check_models(len(self.names), self.base is not None, values)
        seed = self.seed if seed is None else _seed(seed)
        made = dataclasses.replace(self, method=chosen, values=values, seed=seed, recipe=None)
        return gather(made, None)


def plan(
    method: str | Method,
    models: Mapping[str, Any] | Sequence[Any],
    base: Any = None,
    parameters: Mapping[str, Any] | None = None,
    per_model: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    out_dtype: str | torch.dtype | None = None,
    seed: int = 0,
    load: Callable[..., Any] | None = None,
    statistics: Any = None,
    init: Any = None,
    learned: Mapping[str, Sequence[float]] | None = None,
    space: str | None = None,
) -> Plan:
    """Check a merge and plan it.

    ``models`` is a mapping of names to checkpoints, sources or state dicts, or a sequence of them; ``base`` one of the
    same. For methods that need them: ``statistics``, a folder or a mapping of names to
    :class:`~mergelab.statistics.TaskStatistics`, which are matched to the models by the hash of their weights;
    ``init``, what the method starts from (``"average"``, ``"base"``, a method's name, a mapping with ``merge_method``
    and ``parameters``, a merged state dict); ``learned``, tensor name -> one coefficient per model.

    ``space="adapter"`` merges the vectors of (IA)³ adapters themselves, all ones being the base; ``base`` is then what
    the adapters stand on, where they do not say so.

    Raises MethodError naming the model and tensor when they do not fit, or the parameter when a value does not;
    StatisticsError when statistics are missing or belong to other weights.
    """
    chosen = methods.get(method)
    named = name_models(models)
    names = tuple(named)
    values = chosen.resolve(parameters or {}, names, per_model)
    space = checked_space(space)
    chosen.check_models(len(names), base is not None or space == ADAPTER, values)
    compute, out_code = dtypes(dtype, out_dtype)
    seed = _seed(seed)
    base_checkpoint = opened(base, name="base", load=load) if base is not None else None
    checkpoints = tuple(opened(value, name=name, base=base_checkpoint, load=load) for name, value in named.items())
    if space == ADAPTER:
        base_checkpoint, checkpoints = vectors_of(names, checkpoints)
    found = structure(base_checkpoint, names, checkpoints)
    if found.problems:
        first, more = found.problems[0], len(found.problems) - 1
        and_more = f" ({more} more such {'differences' if more > 1 else 'difference'}.)" if more else ""
        raise MethodError(f"{first.text} {first.fix}{and_more}")
    keys = model_keys(name if not isinstance(value, str) else value for name, value in named.items())
    made = Plan(
        chosen, names, checkpoints, base_checkpoint, values, found.items, found.aliases, keys, compute, out_code, seed,
        learned=learned, space=space, shared=shared_by(base_checkpoint, *checkpoints),
    )  # fmt: skip
    return gather(begin(made, init, load=load), statistics)


def plan_recipe(recipe: Recipe, *, load: Callable[..., Any] | None = None, statistics: Any = None) -> Plan:
    """The plan of a recipe. ``load(source)`` opens a source (default: :func:`mergelab.checkpoints.load`).

    ``statistics`` (a folder, or a mapping of names to them) stands for the recipe's own.
    """
    recipe_models = experts(recipe)
    made = plan(
        recipe.merge_method,
        {name: entry.model for name, entry in recipe_models.items()},
        recipe.base_model,
        recipe.parameters,
        {name: entry.parameters for name, entry in recipe_models.items() if entry.parameters},
        dtype=recipe.dtype,
        out_dtype=recipe.out_dtype,
        seed=recipe.seed,
        load=load,
        statistics=recipe.statistics if statistics is None else statistics,
        init=recipe.init,
        space=recipe.space,
    )
    return dataclasses.replace(made, recipe=recipe)


def experts(recipe: Recipe) -> dict[str, Any]:
    """Display name -> entry of the models to merge.

    As in mergekit, the base may also stand in the list of models; for a method of task vectors it is not an expert.
    """
    named = dict(zip(recipe.names, recipe.models, strict=True))
    if recipe.base_model is None or methods.get(recipe.merge_method).base != "required":
        return named
    kept = {name: entry for name, entry in named.items() if entry.model != recipe.base_model}
    if not kept:
        raise MethodError("The only model in the recipe is the base itself; list at least one expert to merge into it.")
    return kept


def name_models(models: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Models by unique name; a sequence gets names from its sources, or ``model-1``, ``model-2``…"""
    if isinstance(models, Mapping):
        if models and all(isinstance(value, torch.Tensor) for value in models.values()):
            raise MethodError("'models' is one state dict; give a list of models, or a mapping of names to models.")
        return {str(name): value for name, value in models.items()}
    if isinstance(models, str) or not isinstance(models, Sequence):
        raise MethodError("'models' must be a list of models or a mapping of names to models.")
    out: dict[str, Any] = {}
    for position, value in enumerate(models, 1):
        stem = getattr(value, "name", None) or (
            f"model-{position}" if isinstance(value, Mapping) else readable_name(str(value))
        )
        name, count = stem, 1
        while name in out:
            count += 1
            name = f"{stem}-{count}"
        out[name] = value
    return out


def model_keys(sources: Any) -> tuple[str, ...]:
    """What identifies each model for randomness: its source without the revision, numbered where it is repeated."""
    out: list[str] = []
    for source in sources:
        key = str(source)
        if key.startswith("hub:"):
            repository, _, rest = key.partition("@")
            _, slash, inside = rest.partition("/")
            key = repository + slash + inside
        repeats = sum(other == key or other.startswith(f"{key}#") for other in out)
        out.append(f"{key}#{repeats + 1}" if repeats else key)
    return tuple(out)


def opened(value: Any, *, name: str, base: Any = None, load: Callable[..., Any] | None = None) -> Any:
    """A checkpoint as it is; anything else is opened by ``load``."""
    if hasattr(value, "infos"):
        return value
    if load is not None:
        return load(value)
    from ..checkpoints import load as open_source

    # An expert of a zoo knows its own base; another adapter may need to be told.
    if isinstance(value, str) and value.startswith("zoo:"):
        base = None
    return open_source(value, base=base, name=None if isinstance(value, str) else name)


def structure(base: Any, names: Sequence[str], checkpoints: Sequence[Any]) -> Structure:
    """Compare the models with the base, or with the first of them when there is none."""
    if base is not None:
        return compare(base, "the base", list(zip(names, checkpoints, strict=True)))
    return compare(checkpoints[0], f"model {names[0]!r}", list(zip(names[1:], checkpoints[1:], strict=True)))


def dtypes(dtype: str | torch.dtype | None, out_dtype: str | torch.dtype | None) -> tuple[torch.dtype, str | None]:
    """(what to compute in, the code of what comes out or ``None`` for each tensor's own type)."""
    given = []
    for key, value in (("dtype", dtype), ("out_dtype", out_dtype)):
        text = None if value is None else str(value).removeprefix("torch.")
        if text is not None and text not in DTYPES:
            raise RecipeError(f"{key!r} cannot be {text!r}; choose one of {', '.join(DTYPES)}.")
        given.append(text)
    computed, out = given
    compute = torch.float64 if computed == "float64" else torch.float32
    out = out or computed
    return compute, _CODES[out] if out else None


def checked_space(space: str | None) -> str:
    """The space that is merged in; RecipeError for an unknown one."""
    if space is not None and space not in SPACES:
        raise RecipeError(f"'space' cannot be {str(space)[:40]!r}.{suggest(str(space), SPACES)}")
    return space or WEIGHTS


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise MethodError(f"The seed must be a whole number from 0 to 2^63 - 1, not {seed!r}.")
    return seed
