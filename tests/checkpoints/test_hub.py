"""The Hub, on the loopback stand-in: what is asked for, what is sent, what is said when it goes wrong."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest
import torch
from hub_standin import HubStandIn
from safetensors.torch import save

import mergelab
from mergelab.checkpoints import hub as hub_module
from mergelab.checkpoints import hub_client, load
from mergelab.errors import Cancelled, CheckpointError, HubError
from mergelab.progress import Stop

Tensors = dict[str, torch.Tensor]


def sharded(tensors: Tensors) -> dict[str, bytes]:
    files = {f"model-0000{i}-of-00002.safetensors": {} for i in (1, 2)}  # type: dict[str, Tensors]
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        file = list(files)[i % 2]
        files[file][name], weight_map[name] = tensor, file
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return {file: save(part) for file, part in files.items()} | {"model.safetensors.index.json": index}


def headers_of(*files: bytes) -> int:
    """Bytes of these files that are header: the length and what it announces."""
    return sum(8 + int.from_bytes(file[:8], "little") for file in files)


def adapter_files() -> dict[str, bytes]:
    key = "base_model.model.encoder"
    factors = {f"{key}.lora_A.weight": torch.ones(1, 5), f"{key}.lora_B.weight": torch.ones(7, 1)}
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "base_model_name_or_path": "org/base"}
    return {"adapter_model.safetensors": save(factors), "adapter_config.json": json.dumps(settings).encode()}


def anonymous(hub: HubStandIn) -> bool:
    return all(request.authorization is None for request in hub.requests)


def test_search_finds_what_is_tuned_from_a_base(hub: HubStandIn, tensors: Tensors) -> None:
    files = {"model.safetensors": save(tensors)}
    sha = hub.add(
        "org/cars", files, base="org/base", downloads=5, license="apache-2.0", parameters={"F16": 10, "F32": 2}
    )
    hub.add("org/lora", adapter_files(), base="org/base", relation="adapter", downloads=50, gated=True)
    hub.add("org/pickle", {"pytorch_model.bin": b"x"}, base="org/base", downloads=500)
    hub.add("org/other", files, base="org/another", downloads=900)
    found = hub_module.search(base="org/base")
    assert [(model.repo, model.relation) for model in found] == [("org/lora", "adapter"), ("org/cars", "finetune")]
    cars = found[1]
    assert (cars.revision, cars.base, cars.license, cars.dtype) == (sha, "org/base", "apache-2.0", "F16")
    assert (cars.parameters, cars.bytes, cars.downloads, cars.gated) == (12, 28, 5, False)
    assert cars.source == f"hub:org/cars@{sha}" and found[0].gated
    assert [model.repo for model in hub_module.search(base="org/base", query="CAR")] == ["org/cars"]
    assert [model.repo for model in hub_module.search(base="org/base", limit=1)] == ["org/lora"]
    assert [model.repo for model in hub_module.search(query="other")] == ["org/other"]
    assert anonymous(hub)


def test_inspecting_downloads_no_weight(hub: HubStandIn, tensors: Tensors) -> None:
    big = {**tensors, "big": torch.zeros(100_000)}
    files = sharded(big)
    sha = hub.add("org/m", {**files, "config.json": b'{"model_type": "dinov2"}'}, base="org/base")
    model = hub_module.inspect("org/m")
    assert {name: (info.dtype, info.shape) for name, info in model.infos.items()} == {
        name: (info.dtype, info.shape) for name, info in load(big).infos.items()
    }
    assert (model.repo, model.revision, model.base, model.relation, model.license) == (
        "org/m",
        sha,
        "org/base",
        "finetune",
        "mit",
    )
    assert (model.dtype, model.bytes) == ("F32", sum(tensor.nbytes for tensor in big.values()))
    assert model.parameters == sum(tensor.numel() for tensor in big.values())
    weights = [files[name] for name in sorted(files) if name.endswith(".safetensors")]
    # The first of the two requests to each file looks at one byte more than the length, so it comes twice.
    assert hub.sent(".safetensors") == headers_of(*weights) + len(weights)
    assert all(request.range for request in hub.requests if request.path.endswith(".safetensors"))
    assert anonymous(hub)


def test_loading_is_lazy_and_pinned(hub: HubStandIn, tensors: Tensors) -> None:
    first = hub.add(
        "org/m", {**sharded(tensors), "config.json": b'{"a": 1}', "train.py": b"x", "pytorch_model.bin": b"x"}
    )
    checkpoint = mergelab.load("hub:org/m")
    assert (checkpoint.source, checkpoint.name, checkpoint.config) == (f"hub:org/m@{first}", "m", {"a": 1})
    assert len(checkpoint) == len(tensors) and checkpoint.folder is None
    hub.add("org/m", {"model.safetensors": save({"w": torch.zeros(1)})})  # the branch moves on
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint[name], tensor)
    resolved = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert all(f"/resolve/{first}/" in path for path in resolved)
    assert not any(path.endswith((".py", ".bin")) for path in resolved)
    assert anonymous(hub)
    assert checkpoint.folder is not None and checkpoint.folder.name == first
    assert set(mergelab.load("hub:org/m")) == {"w"}


def test_what_is_cached_is_not_asked_for_again(hub: HubStandIn, tensors: Tensors) -> None:
    sha = hub.add("org/m", sharded(tensors) | {"config.json": b"{}"})
    hub_module.download("org/m")
    hub.requests.clear()
    checkpoint = load(f"hub:org/m@{sha}")
    assert torch.equal(checkpoint["steps"], tensors["steps"]) and not hub.requests
    assert checkpoint.source == f"hub:org/m@{sha}"
    assert load("hub:org/m").content_hash  # a branch is looked up


def test_a_part_of_a_download_is_not_taken_for_the_whole(hub: HubStandIn, tensors: Tensors) -> None:
    sha = hub.add("org/m", sharded(tensors))
    hub_client.Client().download("org/m", sha, "model.safetensors.index.json")
    hub_client.Client().download("org/m", sha, "model-00001-of-00002.safetensors")
    checkpoint = load(f"hub:org/m@{sha}")
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint[name], tensor)


def test_branches_tags_and_subfolders(hub: HubStandIn) -> None:
    hub.add("org/m", {"model.safetensors": save({"w": torch.zeros(1)})})
    ones = {
        "model.safetensors": save({"w": torch.ones(1)}),
        "sub/dir/model.safetensors": save({"w": torch.full((1,), 2.0)}),
    }
    sha = hub.add("org/m", ones, revision="refs/pr/3")
    assert load("hub:org/m@refs/pr/3")["w"].item() == 1
    deep = load("hub:org/m@refs/pr/3/sub/dir")
    assert deep["w"].item() == 2 and (deep.name, deep.source) == ("dir", f"hub:org/m@{sha}/sub/dir")
    assert load("hub:org/m")["w"].item() == 0
    assert load(deep.source)["w"].item() == 2


def test_an_adapter_needs_its_base(hub: HubStandIn, tensors: Tensors) -> None:
    base = hub.add("org/base", {"model.safetensors": save({"encoder.weight": torch.zeros(7, 5)})})
    sha = hub.add("org/lora", adapter_files(), base="org/base", relation="adapter")
    with pytest.raises(CheckpointError, match=r"org/lora is an adapter: pass base=.*hub:org/base"):
        load("hub:org/lora")
    for _ in range(2):  # once from headers, once from the cache
        checkpoint = load(f"hub:org/lora@{sha}", base=f"hub:org/base@{base}")
        assert checkpoint.infos["encoder.weight"].shape == (7, 5)
        assert checkpoint["encoder.weight"].sum() == 70
    assert hub_module.inspect("org/lora").relation == "adapter"


def test_an_openclip_repository(hub: HubStandIn, tensors: Tensors) -> None:
    files = {"open_clip_model.safetensors": save(tensors), "open_clip_config.json": b'{"model_cfg": {}}'}
    hub.add("org/clip", {**files, "config.json": b'{"model_type": "clip"}'})
    checkpoint = load("hub:org/clip")
    assert checkpoint.config == {"model_cfg": {}} and torch.equal(checkpoint["wide"], tensors["wide"])


def test_a_server_that_ignores_ranges_is_not_read_to_the_end(hub: HubStandIn) -> None:
    hub.add("org/m", {"model.safetensors": save({"w": torch.zeros(8_000_000)})})
    hub.ignore_range = True
    assert hub_module.inspect("org/m").infos["w"].shape == (8_000_000,)
    assert hub.sent("model.safetensors") < 24_000_000  # of 2 x 32 MB; what fits in the sockets' buffers goes out


def test_a_token_is_sent_only_when_it_is_given(hub: HubStandIn, tensors: Tensors) -> None:
    hub.tokens.add("hf_mine")
    hub.add("org/gated", {"model.safetensors": save(tensors)}, gated=True)
    with pytest.raises(HubError, match=r"org/gated is gated: accept its terms at .*/org/gated, then pass your token"):
        load("hub:org/gated")
    assert anonymous(hub)
    checkpoint = load("hub:org/gated", token="hf_mine")
    assert torch.equal(checkpoint["steps"], tensors["steps"])


HOSTILE = [
    "../../../../o/m/resolve/main/model.safetensors",
    "/o/m/resolve/main/model.safetensors",
    "http://127.0.0.1:1/model.safetensors",
    "..%2f..%2fm.safetensors",
    "..\\m.safetensors",
    "sub/model.safetensors",
]


@pytest.mark.parametrize("place", HOSTILE)
def test_a_hostile_index_reaches_nothing_outside_its_repository(place: str, hub: HubStandIn) -> None:
    hub.add("o/m", {"model.safetensors": save({"w": torch.ones(1)})})
    hub.add("org/evil", {"model.safetensors.index.json": json.dumps({"weight_map": {"w": place}}).encode()})
    for action in (
        lambda: hub_module.inspect("org/evil"),
        lambda: load("hub:org/evil"),
        lambda: hub_module.download("org/evil"),
    ):
        with pytest.raises(HubError, match=r"not the plain name"):
            action()
    assert all(request.path.startswith(("/org/evil/", "/api/models/org/evil/")) for request in hub.requests)
    assert anonymous(hub)


def test_errors_of_repositories_are_sentences(hub: HubStandIn, tensors: Tensors) -> None:
    hub.add("org/m", {"model.safetensors": save(tensors)})
    hub.add("org/pickle", {"pytorch_model.bin": b"x"})
    hub.add("org/nothing", {"README.md": b"x"})
    hub.add("org/lfs", {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"})
    hub.add("org/broken", {"model.safetensors": save(tensors)[:-1]})
    index = json.loads(sharded(tensors)["model.safetensors.index.json"])
    hub.add("org/half", {"model.safetensors.index.json": json.dumps(index).encode()})
    hub.add("org/empty", {"model.safetensors": b""})
    for source, words in {
        "hub:org/gone": "no repository org/gone .* check the name",
        "hub:org/m@v7": "no revision v7",
        "hub:org/pickle": "only the pickle pytorch_model.bin",
        "hub:org/nothing": "no model weights",
        "hub:org/lfs": "Git-LFS pointer",
        "hub:org/broken": "cut short",
        "hub:org/half": "2 of 2 files .* missing",
        "hub:org/empty": "empty",
        "hub:org/m@main/nowhere": "org/m/nowhere has no model weights",
        "hub:": "not a Hub source",
        "hub:a/b/../c": "not a folder",
        "hub:../b": "not a repository name",
        "hub:a--b/c": "not a repository name",
        "hub:org/m@../../x": "not a revision",
    }.items():
        with pytest.raises(HubError, match=words) as caught:
            load(source)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(HubError, match=r"not a repository name"):
        hub_module.search(base="no such/base/here")


def test_a_hub_that_cannot_be_reached_is_said_at_once(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    for action in (
        lambda: load("hub:org/m"),
        lambda: hub_module.search(base="org/m"),
        lambda: hub_module.inspect("org/m"),
    ):
        with pytest.raises(HubError, match=f"{port} cannot be reached.*check the network"):
            action()
    assert not waits  # no retries with pauses between them


def test_a_hub_that_does_not_answer_or_refuses(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = 503
    with pytest.raises(HubError, match=r"refused org/m@main \(HTTP 503\): try again later"):
        load("hub:org/m")
    hub.status, hub.delay = None, threading.Event()
    monkeypatch.setattr(hub_client, "TIMEOUT", 0.3)
    with pytest.raises(HubError, match=r"does not answer within"):
        hub_module.search(query="x")


def test_something_else_at_the_endpoint(hub: HubStandIn) -> None:
    hub.status = 200  # answers {} to everything
    with pytest.raises(HubError, match=r"does not answer as a Hub does"):
        load("hub:org/m")
    assert hub_module.search(query="x") == []


def test_offline_uses_the_cache_and_asks_nothing(
    hub: HubStandIn, tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add("org/m", sharded(tensors) | {"config.json": b'{"a": 1}'})
    hub.add("org/other", {"model.safetensors": save(tensors)})
    hub_module.download("org/m")
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in ("hub:org/m", f"hub:org/m@{sha}"):
        checkpoint = load(source)
        assert checkpoint.source == f"hub:org/m@{sha}" and checkpoint.config == {"a": 1}
        assert torch.equal(checkpoint["wide"], tensors["wide"])
    for action in (
        lambda: load("hub:org/other"),
        lambda: hub_module.search(query="m"),
        lambda: hub_module.inspect("org/other"),
    ):
        with pytest.raises(HubError, match=r"offline mode is on: unset HF_HUB_OFFLINE"):
            action()
    assert not hub.requests


def test_offline_with_half_of_it_in_the_cache(
    hub: HubStandIn, tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add("org/m", sharded(tensors))
    hub_module.inspect("org/m")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=r"offline mode is on"):
        load(f"hub:org/m@{sha}")


def test_a_download_reports_bytes_and_stops(hub: HubStandIn, tmp_path: Path) -> None:
    files = {"model.safetensors": save({"w": torch.zeros(1000)}), "config.json": b"{}"}
    hub.add("org/m", files)
    stop, seen = Stop(), []  # type: ignore[var-annotated]

    def progress(done: int, total: int, text: str) -> None:
        seen.append((done, total))
        if done > 2:
            stop.set()

    stop.set()
    with pytest.raises(Cancelled):
        hub_module.download("org/m", stop=stop)
    folder = hub_module.download("org/m", progress=progress)
    total = sum(map(len, files.values()))
    assert seen[-1] == (total, total) and seen == sorted(seen)
    assert {path.name for path in folder.iterdir()} == set(files)


def test_weights_that_are_not_those_of_the_headers_are_refused(hub: HubStandIn) -> None:
    sha = hub.add("org/m", {"model.safetensors": save({"w": torch.zeros(4)})})
    checkpoint = load("hub:org/m")
    hub.repos["org/m"].commits[sha]["model.safetensors"] = save({"v": torch.zeros(2, 2)})
    with pytest.raises(HubError, match=r"other weights than its headers said"):
        checkpoint["w"]


def test_a_merge_of_two_from_the_hub(hub: HubStandIn) -> None:
    """The whole way: load two pinned sources, average them, and find the numbers."""
    for i in (1, 3):
        hub.add(f"org/m{i}", {"model.safetensors": save({"w": torch.full((2, 2), float(i))})})
    merged = mergelab.merge("linear", {f"m{i}": f"hub:org/m{i}" for i in (1, 3)})
    assert merged["w"].tolist() == [[2, 2], [2, 2]]
    assert anonymous(hub)
