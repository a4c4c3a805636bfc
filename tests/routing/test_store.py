"""A routed model as a folder: round trips, sizes, staleness, and folders that somebody tampered with."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_routed import CLASSES, document, pictures, write_zoo
from torch import Tensor

import mergelab
from mergelab.errors import CheckpointError, MergeLabError, RoutingError
from mergelab.routing import Runner, TwinRecipe, build_routed, export, load_routed, save
from mergelab.routing.layout import file_names
from mergelab.routing.parts import Dense, LowRank, Sparse
from mergelab.routing.routed import RoutedModel
from mergelab.routing.store import content_hash
from mergelab.tasks import Head


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zoo(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def built(zoo: Path) -> RoutedModel:
    recipe = TwinRecipe.from_dict(document(zoo, router={"kind": "mlp", "epochs": 2, "temperature": 0.7}))
    return build_routed(recipe, device="cpu")


@pytest.fixture(scope="module")
def written(built: RoutedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(built, tmp_path_factory.mktemp("out") / "routed")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(written, tmp_path / "routed"))


def stored(part: LowRank | Dense | Sparse) -> dict[str, Tensor]:
    return {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}


def header_bytes(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


# ---- what is written is what is read --------------------------------------------------------------------------------


def test_everything_comes_back_as_it_was(built: RoutedModel, written: Path):
    again = load_routed(written)
    assert again.names == built.names and again.gate == built.gate and again.early_layer == built.early_layer
    assert json.loads(json.dumps(dict(built.settings))) == again.settings
    for name, tensor in built.shared.items():
        assert torch.equal(tensor, again.shared[name]) and tensor.dtype == again.shared[name].dtype
    for task in built.names:
        assert set(built.parts[task]) == set(again.parts[task])
        for name, part in built.parts[task].items():
            other = again.parts[task][name]
            assert type(part) is type(other) and part.shape == other.shape
            assert all(torch.equal(t, stored(other)[k]) and t.dtype == stored(other)[k].dtype
                       for k, t in stored(part).items())  # fmt: skip
        assert torch.equal(built.heads[task].weight, again.heads[task].weight)
    for one, two in ((built.router, again.router), (built.early_router, again.early_router)):
        assert one is not None and two is not None
        assert all(torch.equal(tensor, two.state()[name]) for name, tensor in one.state().items())
        assert two.about()["validation"] == json.loads(json.dumps(one.about()["validation"]))
    assert content_hash(built) == content_hash(again)


def test_nothing_is_multiplied_out_on_the_way_in(built: RoutedModel, written: Path):
    again = load_routed(written)
    assert again.bytes() == built.bytes()
    on_disk = 0
    for path in (written / "exclusive").iterdir():
        with safe_open(path, "pt") as file:
            on_disk += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    resident = sum(part.numbers for parts in again.parts.values() for part in parts.values())
    assert resident == on_disk
    dense = sum(math.prod(part.shape) for parts in again.parts.values() for part in parts.values())
    assert resident < 0.6 * dense


def test_files_are_as_large_as_the_formula_and_their_headers(built: RoutedModel, written: Path):
    """b·(Σ_matrices min(r·(m + n + 1), m·n) + Σ_vectors n) for each task, counted from shapes alone."""
    shapes = {name: tuple(tensor.shape) for name, tensor in built.shared.items()}
    expected = 0
    for shape in shapes.values():
        sizes = [n for i, n in enumerate(shape) if n != 1 or any(m != 1 for m in shape[:i])] or [1]
        rows, columns = sizes[0], math.prod(sizes[1:])
        matrix = len(sizes) > 1 and min(rows, columns) > 1
        expected += min(2 * (rows + columns + 1), rows * columns) if matrix else math.prod(shape)
    for path in (written / "exclusive").iterdir():
        assert path.stat().st_size - header_bytes(path) == 2 * expected
    total = sum(path.stat().st_size - header_bytes(path) for path in written.rglob("*.safetensors"))
    assert total == built.bytes()["total"]


def test_the_shared_part_is_an_ordinary_model_folder(built: RoutedModel, written: Path, zoo: Path):
    from mergelab.models import build

    images = torch.from_numpy(pictures("reds", 4)[0])
    alone = build(written / "shared", device="cpu").encode(images)
    assert torch.allclose(alone, Runner(built, device="cpu").features(images), atol=1e-6)


def test_a_moved_folder_gives_the_same_predictions_in_a_fresh_process(
    built: RoutedModel, folder: Path, tmp_path: Path, root: Path
):
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    folder.rename(moved)
    images = torch.cat([torch.from_numpy(pictures(task, 3)[0]) for task in CLASSES])
    ran = Runner(built, device="cpu").run(images, mode="per_input")
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; from mergelab.routing import Runner, load_routed\n"
        "images = torch.load(sys.argv[2]); run = Runner(load_routed(sys.argv[1]), device='cpu').run\n"
        "ran = run(images, mode='per_input')\n"
        "torch.save({'features': ran.features, 'weights': ran.weights}, sys.argv[3])"
    )
    out = tmp_path / "out.pt"
    subprocess.run([sys.executable, "-c", code, moved, tmp_path / "images.pt", out], cwd=root, check=True)
    there = torch.load(out)
    assert torch.allclose(there["weights"], ran.weights, atol=1e-6)
    assert torch.allclose(there["features"], ran.features, atol=1e-5)


def test_all_forms_of_parts_and_heads_are_kept(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    shared = {"a/b.weight": torch.randn(6, 5, generator=generator), "v": torch.randn(4, generator=generator),
              "k": torch.randn(3, 2, 2, 2, generator=generator), "ids": torch.arange(3)}  # fmt: skip
    shared["tied"] = shared["v"]
    low = LowRank(torch.randn(6, 1).half(), torch.ones(1).half(), torch.randn(1, 5).half(), (6, 5))
    sparse = Sparse(torch.tensor([0, 7, 23], dtype=torch.int32), torch.tensor([1.0, -2.0, 0.5]), (3, 2, 2, 2))
    parts = {"one": {"a/b.weight": low, "v": Dense(torch.ones(4))}, "two": {"k": sparse}, "none": {}}
    head = Head(torch.randn(2, 3), None, 4.5, True, torch.randn(3, 7), "zero-shot")
    routed = RoutedModel(("one", "two", "none"), shared, parts, {"two": head}, aliases={"tied": "v"})
    again = load_routed(save(routed, tmp_path / "r"))
    assert again.aliases == {"tied": "v"} and again.shared["tied"] is again.shared["v"]
    assert again.parts["none"] == {} and again.router is None and again.config == {} and again.preprocessor is None
    kept = again.heads["two"]
    assert (kept.scale, kept.normalize, kept.bias, kept.kind) == (4.5, True, None, "zero-shot")
    assert kept.projection is not None and torch.equal(kept.projection, head.projection)
    weights = [0.5, 2.0, 1.0]
    for name, tensor in routed.state(weights).items():
        assert torch.equal(tensor, again.state(weights)[name]), name


def test_names_of_tasks_that_no_system_can_hold_become_numbers(tmp_path: Path):
    names = ("mnist", "../up", "CON", "a/b", "Case", "case", "ünïcode", "x" * 300, ".hidden", "sp ace")
    files = file_names(names)
    assert files["mnist"] == "mnist.safetensors"
    assert len({file.casefold() for file in files.values()}) == len(names)
    assert [files[name] for name in names[1:]] == [f"@{i:04d}.safetensors" for i in range(1, 10)]
    routed = RoutedModel(names, {"w": torch.zeros(2)}, {name: {"w": Dense(torch.full((2,), float(i)))}
                                                       for i, name in enumerate(names)})  # fmt: skip
    again = load_routed(save(routed, tmp_path / "r"))
    assert again.names == names
    assert all(float(again.parts[name]["w"].dense()[0]) == i for i, name in enumerate(names))
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {
        tmp_path / "r" / "exclusive",
        tmp_path / "r/shared",
    }


# ---- whole or not at all --------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_left_alone_unless_told(built: RoutedModel, folder: Path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="not empty"):
        save(built, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    save(built.at_rank(1), folder, overwrite=True)
    assert load_routed(folder).rank == 1
    assert [path.name for path in folder.parent.iterdir()] == ["routed"]


def test_a_write_that_fails_leaves_nothing_and_what_was_there(
    built: RoutedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from mergelab.routing import store

    before = content_hash(load_routed(folder))

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_file", broken)
    for out in (folder, folder.parent / "other"):
        with pytest.raises(CheckpointError, match="full"):
            save(built, out, overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == ["routed"]
    assert content_hash(load_routed(folder)) == before


def test_values_that_are_none_are_never_written(built: RoutedModel, tmp_path: Path):
    task = built.names[0]
    name = next(name for name, part in built.parts[task].items() if isinstance(part, LowRank))
    part = built.parts[task][name]
    assert isinstance(part, LowRank)
    bad = replace(part, s=part.s * math.inf)
    parts = {**built.parts, task: {**built.parts[task], name: bad}}
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        save(replace(built, parts=parts), tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_the_unfinished_folder_of_a_killed_write_does_not_load(folder: Path):
    partial = folder.rename(folder.with_name("routed.partial-99999999-00ff"))
    with pytest.raises(CheckpointError, match="did not finish"):
        load_routed(partial)


# ---- stale and damaged ----------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> None:
    """Change a safetensors file, and its hash in routed.json with it."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata() or {})
    change(tensors, metadata)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    _rehash(path)


def _rehash(path: Path) -> None:
    from mergelab.routing.hashes import file_hash

    folder = path.parent if (path.parent / "routed.json").exists() else path.parent.parent
    manifest = json.loads((folder / "routed.json").read_text())
    manifest["hashes"][path.relative_to(folder).as_posix()] = file_hash(path)
    (folder / "routed.json").write_text(json.dumps(manifest))


def test_another_shared_model_makes_parts_and_router_stale(folder: Path):
    rewrite(folder / "shared/model.safetensors", lambda tensors, _: tensors["layernorm.bias"].add_(1))
    with pytest.raises(RoutingError, match=r"exclusive/reds\.safetensors.*stale.*Build"):
        load_routed(folder)


def test_a_router_for_another_shared_model_is_stale(folder: Path, zoo: Path, tmp_path: Path):
    other = save(build_routed(TwinRecipe.from_dict(document(zoo, parameters={"lambda": 0.1})), device="cpu"),
                 tmp_path / "other")  # fmt: skip
    shutil.copy(other / "router.safetensors", folder / "router.safetensors")
    with pytest.raises(RoutingError, match=r"router\.safetensors.*stale router.*[Tt]rain"):
        load_routed(folder)
    built = load_routed(other)
    with pytest.raises(RoutingError, match="stale"):
        save(
            replace(built, shared={**built.shared, "layernorm.bias": built.shared["layernorm.bias"] + 1}),
            tmp_path / "x",
        )


def test_a_router_of_other_tasks_is_stale(folder: Path):
    manifest = json.loads((folder / "routed.json").read_text())
    manifest["routers"]["router"]["names"] = ["reds", "blues", "greens"]
    (folder / "routed.json").write_text(json.dumps(manifest))
    with pytest.raises(RoutingError, match=r"stale router.*reds, blues, greens"):
        load_routed(folder)


def test_parts_that_changed_places_are_noticed(folder: Path):
    one, two = folder / "exclusive/reds.safetensors", folder / "exclusive/blues.safetensors"
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)
    with pytest.raises(RoutingError, match=r"reds\.safetensors.*'blues'.*'reds'"):
        load_routed(folder)


def test_a_flipped_bit_is_noticed(folder: Path):
    for file in ("exclusive/greens.safetensors", "router.safetensors", "heads/blues.safetensors", "shared/config.json"):
        path = folder / file
        raw = bytearray(path.read_bytes())
        whole = bytes(raw)
        raw[-3] ^= 1
        path.write_bytes(bytes(raw))
        with pytest.raises(MergeLabError):
            load_routed(folder)
        path.write_bytes(whole)
    assert load_routed(folder).names


def _factor(change: Callable[[dict[str, Tensor], str], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        path = folder / "exclusive/reds.safetensors"
        name = next(key[:-2] for key in load_file(path) if key.endswith("/u"))
        rewrite(path, lambda tensors, _: change(tensors, name))

    return tamper


def _vector(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "exclusive/reds.safetensors", lambda tensors, _: change(tensors))


BAD_PARTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a NaN": (_factor(lambda t, n: t[f"{n}/u"].view(-1)[:1].fill_(math.nan)), "NaN"),
    "a missing factor": (_factor(lambda t, n: t.pop(f"{n}/s")), "no form"),
    "an unknown form": (_factor(lambda t, n: t.update({f"{n}/w": torch.zeros(1)})), "no form"),
    "two forms at once": (_factor(lambda t, n: t.update({f"{n}/delta": torch.zeros(1)})), "no form"),
    "a factor of another size": (_factor(lambda t, n: t.update({f"{n}/u": t[f"{n}/u"][:-1]})), "factors"),
    "factors turned round": (_factor(lambda t, n: t.update({f"{n}/u": t[f"{n}/u"].T.contiguous()})), "factors"),
    "rank 0": (_factor(lambda t, n: t.update({f"{n}/u": t[f"{n}/u"][:, :0], f"{n}/s": t[f"{n}/s"][:0],
                                             f"{n}/v": t[f"{n}/v"][:0]})), "factors"),
    "whole numbers as factors": (_factor(lambda t, n: t.update({f"{n}/s": torch.ones(2, dtype=torch.int32)})), "whole"),
    "values that rise": (_factor(lambda t, n: t.update({f"{n}/s": t[f"{n}/s"].flip(0)})), "fall"),
    "values below 0": (_factor(lambda t, n: t.update({f"{n}/s": -t[f"{n}/s"].flip(0)})), "fall|below"),
    "a vector of another size": (_vector(lambda t: t.update({"layernorm.bias/delta": torch.zeros(3).half()})), "shape"),
    "a part of nothing": (_vector(lambda t: t.update({"nowhere/delta": torch.zeros(3)})), "lists other"),
    "places out of range": (_vector(lambda t: (t.pop("layernorm.bias/delta"), t.update(
        {"layernorm.bias/places": torch.tensor([0, 99], dtype=torch.int32), "layernorm.bias/values": torch.ones(2)}))),
        "places"),
    "places that fall": (_vector(lambda t: (t.pop("layernorm.bias/delta"), t.update(
        {"layernorm.bias/places": torch.tensor([3, 1], dtype=torch.int32), "layernorm.bias/values": torch.ones(2)}))),
        "places"),
    "more places than values": (_vector(lambda t: (t.pop("layernorm.bias/delta"), t.update(
        {"layernorm.bias/places": torch.tensor([1, 3], dtype=torch.int32), "layernorm.bias/values": torch.ones(1)}))),
        "places"),
    "no shapes": (lambda f: rewrite(f / "exclusive/reds.safetensors", lambda _, m: m.pop("shapes")), "shapes"),
    "shapes that are none": (lambda f: rewrite(f / "exclusive/reds.safetensors", lambda _, m: m.update(shapes="[1]")),
                             "shapes"),
    "no hash": (lambda f: rewrite(f / "exclusive/reds.safetensors", lambda _, m: m.pop("shared")), "stale"),
    "a router with a NaN": (lambda f: rewrite(f / "router.safetensors", lambda t, _: t["8.bias"].fill_(math.nan)),
                            "NaN"),
    "a router cut down": (lambda f: rewrite(f / "router.safetensors", lambda t, _: t.pop("8.bias")), "8.bias"),
    "a head of another task": (lambda f: rewrite(f / "heads/reds.safetensors", lambda _, m: m.update(task="x")),
                               "head"),
    "a head without weight": (lambda f: rewrite(f / "heads/reds.safetensors", lambda t, _: t.pop("weight")), "head"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PARTS)
def test_tampered_tensors_are_refused(case: str, folder: Path):
    tamper, named = BAD_PARTS[case]
    tamper(folder)
    with pytest.raises(MergeLabError, match=named) as caught:
        load_routed(folder)
    assert "safetensors" in str(caught.value) and len(str(caught.value)) < 600


def _set(**changes: object) -> Callable[[dict], object]:
    return lambda manifest: manifest.update(changes)


BAD_MANIFESTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "another format": (_set(format="mergelab-routed/2"), "format"),
    "an unknown key": (_set(extra=1), "extra"),
    "no names": (_set(names=[]), "names"),
    "names twice": (_set(names=["reds", "reds", "blues"]), "names"),
    "a name that is a number": (_set(names=["reds", 1, "blues"]), "names"),
    "a name too few": (_set(names=["reds", "greens"]), "exclusive"),
    "a hash that is none": (_set(shared="abc"), "shared"),
    "another hash": (_set(shared="0" * 64), "another shared model"),
    "a part outside": (lambda m: m["exclusive"].update(reds="../../etc/passwd"), "exclusive"),
    "a part elsewhere": (lambda m: m["exclusive"].update(reds="exclusive/../router.safetensors"), "exclusive"),
    "an absolute part": (lambda m: m["exclusive"].update(reds="/etc/passwd"), "exclusive"),
    "a part that is missing": (lambda m: m["exclusive"].update(reds="exclusive/x.safetensors"), "missing"),
    "a head outside": (lambda m: m["heads"]["reds"].update(file="heads/../../x.safetensors"), "heads"),
    "a head of nobody": (lambda m: m["heads"].update(x=m["heads"]["reds"]), "heads"),
    "a head's scale": (lambda m: m["heads"]["reds"].update(scale="1"), "scale"),
    "a router of no kind": (lambda m: m["routers"]["router"].update(kind="magic"), "magic"),
    "an unknown router": (lambda m: m["routers"].update(third={}), "routers"),
    "a router without notes": (lambda m: m["routers"].update(router=None), "stale|description"),
    "an early layer that is none": (_set(early_layer="1"), "early_layer"),
    "an early layer without router": (lambda m: m["routers"].pop("early_router"), "early"),
    "a gate out of range": (lambda m: m["gate"].update(temperature=-1), "gate"),
    "an unknown gate": (lambda m: m["gate"].update(magic=1), "gate"),
    "a huge gate": (lambda m: m["gate"].update(temperature=10**400), "gate"),
    "settings that are a list": (_set(settings=[]), "settings"),
    "a recipe that is none": (lambda m: m["settings"].update(recipe={"merge_method": 1}), "recipe"),
    "no hash of a part": (lambda m: m["hashes"].pop("exclusive/reds.safetensors"), "no hash"),
    "another hash of a part": (lambda m: m["hashes"].update({"exclusive/reds.safetensors": "0" * 64}), "changed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_tampered_descriptions_are_refused(case: str, folder: Path):
    tamper, named = BAD_MANIFESTS[case]
    manifest = json.loads((folder / "routed.json").read_text())
    tamper(manifest)
    (folder / "routed.json").write_text(json.dumps(manifest))
    with pytest.raises(MergeLabError, match=named) as caught:
        load_routed(folder)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("raw", [
    b"", b"[]", b"{", b'{"a": NaN}', b'{"format": 1, "format": 2}', b"[" * 100_000, b"\xff\xfe", b" " * (17 << 20),
    pickle.dumps({"format": "mergelab-routed/1"}),
])  # fmt: skip
def test_descriptions_that_are_no_json_object_are_refused(raw: bytes, folder: Path):
    (folder / "routed.json").write_bytes(raw)
    with pytest.raises(MergeLabError, match=r"routed\.json"):
        load_routed(folder)


@pytest.mark.parametrize("file", ["routed.json", "exclusive/reds.safetensors", "router.safetensors", "exclusive",
                                  "heads/reds.safetensors", "shared/model.safetensors", "shared"])  # fmt: skip
def test_links_are_not_followed(file: str, folder: Path, tmp_path: Path):
    target = (folder / file).rename(tmp_path / "target")
    os.symlink(target, folder / file)
    with pytest.raises(MergeLabError):
        load_routed(folder)


@pytest.mark.parametrize("file", ["exclusive/reds.safetensors", "router.safetensors", "heads/reds.safetensors"])
def test_pickles_and_cut_files_are_refused(file: str, folder: Path):
    path = folder / file
    whole = path.read_bytes()
    for raw in (pickle.dumps({"w": 1}), whole[: len(whole) // 2], b"", whole + b"0"):
        path.write_bytes(raw)
        _rehash(path)
        with pytest.raises(CheckpointError, match=path.stem):
            load_routed(folder)
    path.unlink()
    with pytest.raises(MergeLabError, match="missing"):
        load_routed(folder)


def test_places_without_a_routed_model_are_named(tmp_path: Path, zoo: Path):
    for place in (tmp_path / "nowhere", tmp_path, zoo / "base"):
        with pytest.raises(RoutingError, match=place.name):
            load_routed(place)


# ---- exporting ------------------------------------------------------------------------------------------------------


def test_an_export_is_an_ordinary_checkpoint_of_the_mixture(built: RoutedModel, tmp_path: Path):
    weights = [0.5, 0.25, 0.25]
    out = export(built, weights, tmp_path / "merged")
    checkpoint = mergelab.load(out)
    wanted = built.state(weights)
    for name in wanted:
        assert checkpoint[name].dtype == built.shared[name].dtype
        assert torch.allclose(checkpoint[name].float(), wanted[name], atol=2e-3, rtol=1e-3)
    card = (out / "README.md").read_text()
    assert "| reds | 0.5 |" in card and "| blues | 0.25 |" in card and "no router" in card
    images = torch.from_numpy(pictures("greens", 5)[0])
    from mergelab.models import build

    here = Runner(built, device="cpu").run(images, weights, "static").features
    assert torch.allclose(build(out, device="cpu").encode(images), here, atol=2e-2)
    with pytest.raises(CheckpointError, match="not empty"):
        export(built, weights, out)
    with pytest.raises(MergeLabError, match="3 numbers"):
        export(built, [1.0], tmp_path / "other")


def test_the_content_hash_sees_every_part(built: RoutedModel):
    hashes = {
        content_hash(found)
        for found in (
            built, built.at_rank(1), replace(built, router=None), replace(built, early_router=None, early_layer=None),
            replace(built, gate=replace(built.gate, temperature=2.0)),
            replace(built, heads={**built.heads, "reds": replace(built.heads["reds"], scale=2.0)}),
            replace(built, shared={**built.shared, "layernorm.bias": built.shared["layernorm.bias"] + 1}),
        )
    }  # fmt: skip
    assert len(hashes) == 7
    assert content_hash(built) == content_hash(replace(built, settings={}))
