"""In which tensors checkpoints differ, and what is read to find out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergelab.checkpoints import Checkpoint, differing, load
from mergelab.checkpoints.checkpoint import MemoryCheckpoint
from mergelab.errors import Cancelled
from mergelab.progress import Stop


class Counted(MemoryCheckpoint):
    """A state dict that counts what is read of it."""

    def __init__(self, tensors: dict[str, torch.Tensor], name: str = "counted") -> None:
        super().__init__(tensors, name=name)
        self.reads: Counter[str] = Counter()

    def _read(self, info):
        self.reads[info.name] += 1
        return super()._read(info)


def state(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3), "c": torch.zeros(2), **changed}


def test_values_decide_and_reading_stops_at_the_first_that_differs() -> None:
    three = [Counted(state()), Counted(state(a=torch.zeros(2, 3))), Counted(state(b=torch.zeros(3)))]
    assert differing(three) == {"a", "b"}
    assert [dict(one.reads) for one in three] == [{"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, {"b": 1, "c": 1}]
    assert differing(three[:1]) == frozenset() and differing([]) == frozenset()


def test_a_dtype_is_no_difference_and_a_shape_or_an_absence_is() -> None:
    half = state(a=state()["a"].half(), b=torch.full((3,), 1.0 + 2**-9).bfloat16())
    assert differing([Counted(state()), Counted(half)]) == frozenset()  # bfloat16 rounds 1 + 2^-9 to 1
    assert differing([Counted(state()), Counted(state(b=torch.ones(3, 1)))]) == {"b"}
    fewer = state()
    del fewer["c"]
    assert differing([Counted(state()), Counted(fewer)]) == differing([Counted(fewer), Counted(state())]) == {"c"}
    # what is not a number is not equal to itself, and whoever merges it should hear of it
    nan = torch.full((2,), float("nan"))
    assert differing([Counted(state(c=nan)), Counted(state(c=nan))]) == {"c"}


def test_stopping() -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        differing([Counted(state()), Counted(state())], stop=stop)


def lora(folder: Path, base: str, *layers: str) -> Path:
    """An adapter of rank 1 on some layers of :func:`layered`."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": list(layers),
                "base_model_name_or_path": base}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {f"base_model.model.{layer}.lora_{part}.weight": torch.ones(shape)
               for layer in layers for part, shape in (("A", (1, 3)), ("B", (2, 1)))}  # fmt: skip
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[Checkpoint, Path]:
    base = tmp_path / "base.safetensors"
    save_file({f"{name}.weight": torch.ones(2, 3) for name in ("x", "y", "z")}, base)
    return load(base), tmp_path


def test_adapters_of_one_base_are_told_apart_without_reading(adapters, monkeypatch) -> None:
    base, folder = adapters
    first, second = (load(lora(folder / name, base.source, *layers), base=base.source)
                     for name, layers in (("one", ["x"]), ("two", ["x", "y"])))  # fmt: skip
    assert first.base is not second.base

    def never(*_: object) -> None:
        raise AssertionError("nothing is to be read")

    with monkeypatch.context() as patch:
        patch.setattr(type(first), "_read", never)
        patch.setattr(type(base), "_read", never)
        assert differing([first, second]) == {"x.weight", "y.weight"}
    whole = load({name: base[name] for name in base}, name="whole")
    assert differing([first, whole]) == {"x.weight"} and differing([whole, second]) == {"x.weight", "y.weight"}
    assert differing([whole, base]) == frozenset()


def test_adapters_of_other_bases_are_read(adapters) -> None:
    base, folder = adapters
    other = folder / "other.safetensors"
    save_file({f"{name}.weight": torch.full((2, 3), 2.0 if name == "z" else 1.0) for name in ("x", "y", "z")}, other)
    first = load(lora(folder / "one", base.source, "x"), base=base.source)
    same = load(lora(folder / "two", str(other), "x"), base=str(other))
    assert differing([first, same]) == {"z.weight"}
