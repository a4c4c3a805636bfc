"""What a merging method declares about itself; the form, the docs, the checks and the command line are made from it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import MethodError, suggest

if TYPE_CHECKING:
    import torch

    from .context import Survey

Value: TypeAlias = bool | int | float | str
#: What `resolve` gives: one value, or one per model for a per-model parameter.
Resolved: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    ``range`` is ``(lowest, highest)`` for numbers, the choices for ``choice``, ``None`` for ``bool``; a value outside
    is an error. ``slider`` is the part of the range worth showing on a form (default: ``range``).
    """

    name: str
    type: Literal["float", "int", "bool", "choice"]
    default: Value
    range: tuple[Any, ...] | None = None
    per_model: bool = False
    help: str = ""
    step: float | None = None
    slider: tuple[float, float] | None = None

    @property
    def keyword(self) -> str:
        """The name as a Python keyword argument: ``lambda`` becomes ``lambda_``."""
        return "lambda_" if self.name == "lambda" else self.name

    def check(self, value: Any, where: str) -> Value:
        """``value`` as this parameter's type; raises MethodError when it has another type or is out of range."""
        about = f"Parameter {self.name!r} of {where}"
        if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
            value = value.item()  # a NumPy or torch scalar
        if self.type == "bool":
            if isinstance(value, bool):
                return value
            raise MethodError(f"{about} must be true or false, not {value!r}.")
        if self.type == "choice":
            if isinstance(value, str) and value in (self.range or ()):
                return value
            raise MethodError(f"{about} cannot be {value!r}.{suggest(str(value), self.range or ())}")
        return self._number(value, about)

    def _number(self, value: Any, about: str) -> int | float:
        kind = "a whole number" if self.type == "int" else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MethodError(f"{about} must be {kind}, not {value!r}.")
        if self.type == "int" and isinstance(value, float) and not value.is_integer():
            raise MethodError(f"{about} must be {kind}, not {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise MethodError(f"{about} must be a finite number, not {value!r}.")
        if self.range is not None and not self.range[0] <= value <= self.range[1]:
            raise MethodError(f"{about} is {value:g}, out of range: give {self.range[0]:g} to {self.range[1]:g}.")
        return int(value) if self.type == "int" else float(value)

    def describe(self) -> dict[str, Any]:
        """The parameter as an entry of ``methods --json``."""
        return {
            "name": self.name,
            "type": self.type,
            "default": self.default,
            "range": list(self.range) if self.range is not None else None,
            "per_model": self.per_model,
            "help": self.help,
            "step": self.step,
            "slider": list(self.slider or self.range or ()) if self.type in ("float", "int") else None,
        }


@dataclass(frozen=True)
class Promises:
    """What a method keeps, for the conformance suite; ``None`` means that it makes no such promise.

    ``identity``: parameters under which merging one expert returns that expert. ``zero``: parameters under which the
    result is the base. ``equal``: parameters under which equal experts give that expert. ``permutation``: the order of
    the models does not matter. ``random``: the result depends on the seed (under ``random_parameters``).
    """

    identity: Mapping[str, Value] | None = None
    zero: Mapping[str, Value] | None = None
    equal: Mapping[str, Value] | None = None
    permutation: bool = True
    random: bool = False
    random_parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What a method costs, for the estimates of the pre-flight check.

    ``copies``: working tensors held at once per output tensor; ``copies_per_model``: the same for each model.
    ``passes``: times that all weights are read before the merge itself (a method may say so from its parameters).
    ``work``: time per element and model, in units of one addition; ``spectral``: matrices are decomposed; ``products``:
    times that every model's statistics of a tensor are multiplied with a matrix of its shape.
    """

    copies: float = 2.0
    copies_per_model: float = 0.0
    passes: Callable[[Resolved], int] = lambda _values: 0
    work: float = 1.0
    spectral: bool = False
    products: Callable[[Resolved], int] = lambda _values: 0


@dataclass(frozen=True)
class Method:
    """A declared merging method: what it needs, what it takes, and the kernel that does it.

    ``kernel(base, experts, *, context, **parameters) -> Tensor`` gets one named tensor of the base (or ``None``) and of
    every model, contiguous, in the computing dtype and not to be written to; per-model parameters arrive as lists in
    the models' order. It ``gives`` the merged weights, or the merged task vector τ; then the engine makes θ0 + λ·τ of
    it (λ = 1 when the method has no ``lambda``) and the kernel does not see ``lambda``. ``survey(parameters, count,
    dtype)`` gives a :class:`~mergelab.methods.context.Survey` when whole-model numbers are needed first, else ``None``.
    ``check(parameters)`` raises on values that do not go together.
    """

    name: str
    title: str
    kind: str
    group: str
    summary: str
    formula: str
    paper: str
    url: str
    doc: str
    base: Literal["required", "optional", "unused"]
    kernel: Callable[..., Any]
    gives: Literal["weights", "task_vector"] = "task_vector"
    models_min: int = 1
    models_max: int | None = None
    data: str = "none"
    parameters: tuple[Parameter, ...] = ()
    promises: Promises = field(default_factory=Promises)
    cost: Cost = field(default_factory=Cost)
    survey: Callable[[Resolved, int, torch.dtype], Survey | None] | None = None
    check: Callable[[Resolved], None] | None = None
    #: parameters under which the base is needed although `base` is "optional"
    needs_base: Callable[[Resolved], bool] = lambda _values: False
    #: the kinds of statistics (see :mod:`mergelab.statistics`) that the kernel reads under these values
    statistics: Callable[[Resolved], tuple[str, ...]] = lambda _values: ()
    #: it starts from another merge (``context.start``); without a recipe's ``init`` from the average
    init: bool = False
    #: it needs one learned coefficient per tensor and model (``context.learned``)
    learns: bool = False
    #: it collects its statistics itself, through the layers that it has merged (:mod:`mergelab.calibration.through`)
    collects: bool = False

    def describe(self) -> dict[str, Any]:
        """The method as an object of ``methods --json``."""
        return {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "summary": self.summary,
            "formula": self.formula,
            "paper": f"{self.paper}, {self.url}",
            "base": self.base,
            "models": {"min": self.models_min, "max": self.models_max},
            "data": self.data,
            "parameters": [parameter.describe() for parameter in self.parameters],
            "group": self.group,
            "doc": self.doc,
            "random": self.promises.random,
            "statistics": list(self.statistics(self.defaults())),
            "init": self.init,
            "learns": self.learns,
            "collects": self.collects,
        }

    def defaults(self) -> Resolved:
        """Every parameter's default, per-model ones once: what `statistics` and `needs_base` are asked with."""
        return {parameter.name: parameter.default for parameter in self.parameters}

    def parameter(self, name: str) -> Parameter:
        """The declared parameter of this name (``lambda_`` is ``lambda``); MethodError with a suggestion if none."""
        wanted = name[:-1] if name.endswith("_") else name
        for parameter in self.parameters:
            if parameter.name == wanted:
                return parameter
        known = [parameter.name for parameter in self.parameters]
        raise MethodError(f"Method {self.name!r} has no parameter {name!r}.{suggest(wanted, known)}")

    def resolve(
        self,
        parameters: Mapping[str, Any],
        names: Sequence[str],
        per_model: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Resolved:
        """Checked values for every declared parameter, defaults filled in.

        ``parameters`` maps names to one value, or for a per-model parameter also to a sequence (in the order of
        ``names``) or a mapping by model name; ``per_model`` maps a model's name to its own values, which win.
        """
        if not names:
            raise MethodError(f"Method {self.name!r} got no models; give at least {self.models_min}.")
        given: dict[str, Any] = {}
        for name, value in parameters.items():
            parameter = self.parameter(name)
            if parameter.name in given:
                raise MethodError(f"Parameter {parameter.name!r} of {self.name!r} is given twice.")
            given[parameter.name] = value
        out: Resolved = {}
        for parameter in self.parameters:
            value = given.get(parameter.name, parameter.default)
            if parameter.per_model:
                out[parameter.name] = self._spread(parameter, value, names)
            else:
                out[parameter.name] = parameter.check(value, repr(self.name))
        for model, values in (per_model or {}).items():
            self._own(out, model, values, names)
        if self.check is not None:
            self.check(out)
        return out

    def _spread(self, parameter: Parameter, value: Any, names: Sequence[str]) -> list[Value]:
        """One value per model, from a scalar, a sequence or a mapping by name."""
        about = f"Parameter {parameter.name!r} of {self.name!r}"
        if hasattr(value, "tolist"):
            value = value.tolist()  # a NumPy array or a tensor
        if isinstance(value, Mapping):
            for name in value:
                if name not in names:
                    raise MethodError(
                        f"{about} has a value for {name!r}, which is no model.{suggest(str(name), names)}"
                    )
            missing = [name for name in names if name not in value]
            if missing:
                raise MethodError(f"{about} has no value for the model {missing[0]!r}; give one for each model.")
            value = [value[name] for name in names]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != len(names):
                count = f"{len(value)} value{'' if len(value) == 1 else 's'}"
                raise MethodError(f"{about} has {count} for {len(names)} models; give one for each model.")
        else:
            checked = parameter.check(value, repr(self.name))
            return [checked] * len(names)
        return [
            parameter.check(item, f"{self.name!r} (model {name!r})") for item, name in zip(value, names, strict=True)
        ]

    def _own(self, out: Resolved, model: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
        if model not in names:
            raise MethodError(f"Parameters are given for {model!r}, which is no model.{suggest(model, names)}")
        for name, value in values.items():
            parameter = self.parameter(name)
            if not parameter.per_model:
                raise MethodError(
                    f"Parameter {parameter.name!r} of {self.name!r} is one value for the whole merge, but model "
                    f"{model!r} has its own; give it under the recipe's 'parameters'."
                )
            out[parameter.name][list(names).index(model)] = parameter.check(value, f"{self.name!r} (model {model!r})")

    def check_models(self, count: int, has_base: bool, values: Resolved) -> None:
        """Raise MethodError when there are too few or too many models, or the base is missing or of no use."""
        if count < self.models_min or (self.models_max is not None and count > self.models_max):
            wanted = (
                f"exactly {self.models_min}" if self.models_min == self.models_max else f"at least {self.models_min}"
            )
            if self.models_max is not None and count > self.models_max > self.models_min:
                wanted = f"at most {self.models_max}"
            raise MethodError(f"Method {self.name!r} merges {wanted} models, but {count} {_are(count)} given.")
        if not has_base and (self.base == "required" or self.needs_base(values)):
            raise MethodError(
                f"Method {self.name!r} works on differences from the base, but no base is given; "
                "name the checkpoint that the models were fine-tuned from."
            )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def method(**declared: Any) -> Callable[[Callable[..., Any]], Method]:
    """Turn a kernel into a :class:`Method`: ``@method(name="ties", ...)`` above the kernel."""

    def declare(kernel: Callable[..., Any]) -> Method:
        return Method(kernel=kernel, kind=declared.pop("kind", "tensor"), **declared)

    return declare


def closest(name: str, known: Sequence[str]) -> str:
    """The suggestion for an unknown method name; ``dare-ties`` and ``TIES`` find their spelling."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if plain in known:
        return f" Did you mean {plain!r}?"
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else suggest(name, known)
