"""What coefficient learning found, with how it got there; as JSON beside the merged weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MethodError

FORMAT = "mergelab-learned/1"
LEARNED_FILE = "mergelab_learned.json"
_MOST_BYTES = 64 << 20
_DIGITS = 6


@dataclass(frozen=True)
class Learned:
    """Coefficients learned for a merge.

    ``coefficients``: tensor name -> one coefficient a model, in the order of ``models``, for every merged tensor.
    ``rows`` names the rows of a record in ``history`` (tensors that were trained; one row ``all tensors`` when learned
    per task); ``history`` holds (step, [rows][models]) thinned to about fifty records, the first before any step.
    ``entropy`` and ``confidence`` (mean largest probability) are [steps][models]. ``classes``: task -> how often each
    class was predicted in the first and in the last steps, so that a collapse onto one class shows; ``findings`` says
    it in words. ``samples``: pictures looked at, repeats counted.
    """

    models: tuple[str, ...]
    coefficients: Mapping[str, tuple[float, ...]]
    rows: tuple[str, ...]
    history: tuple[tuple[int, tuple[tuple[float, ...], ...]], ...] = field(repr=False)
    entropy: tuple[tuple[float, ...], ...] = field(repr=False)
    confidence: tuple[tuple[float, ...], ...] = field(repr=False)
    classes: Mapping[str, Mapping[str, tuple[int, ...]]] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    samples: int = 0
    seconds: float = 0.0
    data_used: str = ""
    transductive: bool = False
    suite: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)  # model (and "base") -> hash of what was merged

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        exact = {name: list(row) for name, row in self.coefficients.items()}
        return {"format": FORMAT, **_rounded(asdict(self)), "coefficients": exact}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = LEARNED_FILE) -> Learned:
        """From :meth:`to_dict`; MethodError says what a damaged file lacks."""
        if data.get("format") != FORMAT:
            raise MethodError(
                f"{where}: the format is {str(data.get('format'))[:40]!r}, this version reads {FORMAT!r}; "
                "learn the coefficients again."
            )
        try:
            models = tuple(str(name) for name in data["models"])
            found = {str(name): _numbers(row, len(models)) for name, row in data["coefficients"].items()}
            return cls(
                models, found, tuple(map(str, data["rows"])),
                tuple((int(step), tuple(map(tuple, table))) for step, table in data["history"]),
                tuple(map(tuple, data["entropy"])), tuple(map(tuple, data["confidence"])),
                {task: {key: tuple(counts) for key, counts in of.items()} for task, of in data["classes"].items()},
                dict(data["settings"]), tuple(data["findings"]), int(data["samples"]), float(data["seconds"]),
                str(data["data_used"]), bool(data["transductive"]), str(data["suite"]), dict(data["weights"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MethodError(f"{where} is damaged ({error}); learn the coefficients again.") from None

    def to_json(self) -> str:
        """As the text of the file beside the merged weights."""
        return json.dumps(self.to_dict())

    @classmethod
    def read(cls, path: str | Path) -> Learned:
        """From a file, or from a merged folder that holds one."""
        path = Path(path).expanduser()
        path = path / LEARNED_FILE if path.is_dir() else path
        if not path.is_file():
            raise MethodError(
                f"There are no learned coefficients at {path}: give a {LEARNED_FILE} or a merged folder that holds one."
            )
        if path.stat().st_size > _MOST_BYTES:
            raise MethodError(f"{path.name} is larger than {_MOST_BYTES >> 20} MB, which no learned merge needs.")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise MethodError(f"{path.name} is not valid JSON; learn the coefficients again.") from None
        if not isinstance(data, dict):
            raise MethodError(f"{path.name} must hold a JSON object; learn the coefficients again.")
        return cls.from_dict(data, path.name)

    def ordered(self, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """The coefficients with the models in the order of ``names``; MethodError when these are other models."""
        if set(names) != set(self.models) or len(names) != len(self.models):
            raise MethodError(
                f"The coefficients were learned for the models {', '.join(self.models)}, but {', '.join(names)} are "
                "merged; learn them again, or merge the same models."
            )
        places = [self.models.index(name) for name in names]
        return {tensor: tuple(row[place] for place in places) for tensor, row in self.coefficients.items()}


def _numbers(row: Sequence[Any], count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in row)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{len(numbers)} finite coefficients expected for {count} models")
    return numbers


def _rounded(value: Any) -> Any:
    """Floats to six digits, containers as JSON has them."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
