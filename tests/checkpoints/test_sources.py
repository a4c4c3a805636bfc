"""Sources: what a string may name, and what is said when it names nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergelab.checkpoints import load, zoo_folders, zoo_path
from mergelab.errors import CheckpointError


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of a base, a LoRA expert and a full expert, where zoos that a user built are."""
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MERGELAB_ASSETS", str(tmp_path / "assets"))
    folder = tmp_path / "home" / "zoo" / "tiny"
    for part in ("base", "experts/mnist", "experts/full"):
        (folder / part).mkdir(parents=True)
    save_file({"fc.weight": torch.ones(3, 2)}, folder / "base" / "model.safetensors")
    save_file({"fc.weight": torch.full((3, 2), 9.0)}, folder / "experts" / "full" / "model.safetensors")
    (folder / "base" / "config.json").write_text('{"model_type": "dinov2"}')
    adapter = folder / "experts" / "mnist"
    key = "base_model.model.fc"
    save_file(
        {f"{key}.lora_A.weight": torch.ones(1, 2), f"{key}.lora_B.weight": torch.ones(3, 1)},
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 4}))
    save_file({"weight": torch.ones(10, 3)}, adapter / "head.safetensors")
    experts = {"mnist": "experts/mnist", "full": "experts/full"}
    (folder / "zoo.json").write_text(json.dumps({"format": "mergelab-zoo/1", "base": "base", "experts": experts}))
    return folder


def test_base_adapter_and_full_expert_of_a_zoo(zoo: Path) -> None:
    base, mnist, full = (load(f"zoo:tiny/{part}") for part in ("base", "mnist", "full"))
    assert (base.name, base.source) == ("base", "zoo:tiny/base")
    assert (mnist.name, mnist.source) == ("mnist", "zoo:tiny/mnist")
    assert base["fc.weight"].sum() == 6 and mnist["fc.weight"].sum() == 30 and full["fc.weight"].sum() == 54
    assert mnist.config == {"model_type": "dinov2"} and set(mnist) == set(base)


def test_an_expert_folder_finds_its_base_by_the_layout(zoo: Path) -> None:
    checkpoint = load(zoo / "experts" / "mnist")
    assert checkpoint["fc.weight"].sum() == 30
    assert checkpoint.base.source == "zoo:tiny/base"  # type: ignore[attr-defined]


def test_an_expert_stands_on_its_own_base_whatever_base_it_is_merged_with(zoo: Path) -> None:
    assert load("zoo:tiny/mnist", base={"fc.weight": torch.zeros(3, 2)})["fc.weight"].sum() == 30


def test_a_shipped_zoo_comes_before_one_of_the_same_name(zoo: Path, tmp_path: Path) -> None:
    shipped = tmp_path / "assets" / "zoo" / "tiny"
    (shipped / "base").mkdir(parents=True)
    (shipped / "zoo.json").write_text('{"experts": {}}')
    assert zoo_folders() == {"tiny": shipped}
    assert zoo_path("zoo:tiny/base") == shipped / "base"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("zoo:tinny/base", "no zoo 'tinny'. Did you mean 'tiny'"),
        ("zoo:tiny/mnits", "has no 'mnits'. Did you mean 'mnist'"),
        ("zoo:tiny", "names no checkpoint in it. Known: base, full, mnist"),
        ("zoo:tiny/../../secret", "has no '../../secret'"),
        ("zoo:../tiny/base", "no zoo '..'"),
        ("mnist", "Did you mean 'zoo:tiny/mnist'"),
        ("openai/clip-vit-base-patch32", "write 'hub:openai/clip-vit-base-patch32'"),
        ("hugg:org/name", "hugg: is unknown"),
        (
            "nothing of the kind",
            "'zoo:NAME/base' or 'zoo:NAME/TASK', a file or folder on this machine, or 'hub:org/name'",
        ),
        ("", "not a source"),
        ("a\0b", "NUL"),
    ],
)
def test_a_source_that_names_nothing(source: str, words: str, zoo: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(source)
    assert words in str(caught.value)


@pytest.mark.parametrize("source", [None, 7, ["zoo:tiny/base"]])
def test_what_is_no_source(source: object) -> None:
    with pytest.raises(CheckpointError, match=r"is not a source"):
        load(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["../../secret", "/etc", "a/../../b", "..\\x", 7])
def test_a_zoo_cannot_point_out_of_itself(place: object, zoo: Path) -> None:
    (zoo / "zoo.json").write_text(json.dumps({"experts": {"evil": place}}))
    with pytest.raises(CheckpointError, match=r"outside the zoo"):
        load("zoo:tiny/evil")


def test_a_zoo_that_is_not_whole(zoo: Path) -> None:
    (zoo / "zoo.json").write_text(json.dumps({"experts": {"gone": "experts/gone"}}))
    with pytest.raises(CheckpointError, match=r"experts/gone is missing"):
        load("zoo:tiny/gone")
    (zoo / "zoo.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"zoo.json is malformed"):
        load("zoo:tiny/base")


def test_a_plain_name_never_touches_the_network(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(CheckpointError):
        load("openai/clip-vit-base-patch32")
    assert len(load("zoo:tiny/base")) == 1


def test_the_given_name_is_shown(zoo: Path) -> None:
    checkpoint = load("zoo:tiny/mnist", name="digits")
    assert checkpoint.name == "digits" and checkpoint.source == "zoo:tiny/mnist"
    assert checkpoint["fc.weight"].sum() == 30
