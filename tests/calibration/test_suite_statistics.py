"""Statistics of experts on suites, whole zoos on disk, their cost, and the verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tasks.tiny_zoo import CLASSES, make_zoo

from mergelab.calibration import collect, collect_vectors, collect_zoo, estimate_zoo
from mergelab.checkpoints import adapter_vectors, load
from mergelab.cli import main
from mergelab.errors import Cancelled, CheckpointError, MergeLabError, StatisticsError, TaskError
from mergelab.models import build
from mergelab.progress import Stop
from mergelab.statistics import matched, read_folder
from mergelab.tasks import Head, heads_for, load_suite, subset_indices

KINDS = ["gram", "kfac", "diag"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def experts(zoo: Path) -> dict[str, str]:
    return {name: str(zoo / "experts" / name) for name in CLASSES}


def test_an_experts_statistics_equal_a_loop_over_its_validation_pictures(zoo, experts):
    suite, heads = load_suite(zoo), heads_for(load_suite(zoo))
    task, head = suite["grey"], heads["grey"]
    found = collect(experts["grey"], task, head, kinds=KINDS, examples=10, batch=4, suite=suite.name, device="cpu")
    assert (found.task, found.split, found.examples, found.suite) == ("grey", "val", 10, "tiny")
    assert found.meta["order"] == "balanced" and found.meta["of"] == 60
    assert found.weights_hash == load(experts["grey"]).weights_hash
    images, labels = task.split("val")
    places = subset_indices(task, "val", 10, 0)
    model = build(experts["grey"], device="cpu")
    pixels = model.pixels(images[places])
    total: dict[str, torch.Tensor] = {}
    for n in range(10):
        model.module.zero_grad()
        logits = head.logits(model.through(model.module, pixels[n : n + 1]))
        F.cross_entropy(logits, labels[places[n : n + 1]]).backward()
        for name, p in model.module.named_parameters():
            total[name] = total.get(name, 0) + p.grad.square() / 10
    for name, expected in total.items():
        torch.testing.assert_close(found.block(name, ["diag"]).diagonal, expected, rtol=2e-3, atol=1e-7)
    fc1 = found.block("encoder.layer.0.mlp.fc1.weight")
    assert fc1.rows == 10 * 5 and fc1.kinds == ("diag", "gram", "kfac")  # 2 x 2 patches and the class token


def test_the_first_pictures_instead(zoo, experts):
    suite, head = load_suite(zoo), heads_for(load_suite(zoo))["grey"]
    options = {"kinds": ["gram"], "examples": 7, "device": "cpu"}
    first = collect(experts["grey"], suite["grey"], head, order="first", **options)
    balanced = collect(experts["grey"], suite["grey"], head, **options)
    name = "encoder.layer.0.attention.q_proj.weight"
    assert first.meta["order"] == "first"
    assert not torch.equal(first.block(name).inputs, balanced.block(name).inputs)
    model = build(experts["grey"], device="cpu")
    same = collect(model, suite["grey"], head, order="first", **options)
    assert torch.equal(first.block(name).inputs, same.block(name).inputs)


def test_a_clips_text_side_is_skipped_with_the_reason(tmp_path, zoo):
    from models.tiny_models import clip_config, folder_of, random_clip

    folder = folder_of(tmp_path / "clip", random_clip().state_dict(), clip_config())
    task = load_suite(zoo)["grey"]
    head = Head(torch.randn(3, 24, generator=torch.Generator().manual_seed(0)))
    found = collect(str(folder), task, head, kinds=KINDS, examples=6, device="cpu")
    assert all(not name.startswith(("text_", "logit_scale")) for name in found.names)
    text = {name: why for name, why in found.skipped.items() if name.startswith(("text_", "logit_scale"))}
    assert text and set(text.values()) == {"pictures do not pass it"}
    assert found.block("vision_model.encoder.layers.0.mlp.fc1.weight").kinds == ("diag", "gram", "kfac")
    assert found.block("visual_projection.weight").kinds == ("diag", "gram", "kfac")


def test_a_zoo_on_disk_belongs_to_its_experts(zoo, experts, tmp_path):
    told = []
    out = collect_zoo(zoo, experts, tmp_path / "stats", kinds=KINDS, examples=6, device="cpu",
                      progress=lambda *said: told.append(said))  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == ["colour.safetensors", "grey.safetensors"]
    found = read_folder(out)
    models = {name: load(source) for name, source in experts.items()}
    # both experts of this zoo have the same weights, so the name decides between them
    assert [s.task for s in matched(found, models, ["kfac"]).values()] == list(models)
    assert told[-1][0] == told[-1][1] and "colour" in told[-1][2]
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        collect_zoo(zoo, experts, out, kinds=KINDS)


def test_an_estimate_of_a_zoo_says_the_bytes_on_disk(zoo, experts, tmp_path):
    told = estimate_zoo(zoo, experts, kinds=KINDS, examples=6, batch=3, device="cpu")
    out = collect_zoo(zoo, experts, tmp_path / "stats", kinds=KINDS, examples=6, device="cpu")
    for task, one in told.items():
        size = (out / f"{task}.safetensors").stat().st_size
        assert one.nbytes < size < one.nbytes + 40_000  # the header
        assert (one.examples, one.timed) == (6, 3) and one.seconds > 0


def test_stopping_leaves_nothing(zoo, experts, tmp_path):
    stop = Stop()
    with pytest.raises(Cancelled):
        collect_zoo(zoo, experts, tmp_path / "stats", kinds=["gram"], examples=6, batch=2, stop=stop,
                    progress=lambda done, total, _: stop.set() if done * 2 > total else None)  # fmt: skip
    assert list(tmp_path.iterdir()) == []

    def interrupt(done: int, total: int, _: str) -> None:
        if done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_zoo(zoo, experts, tmp_path / "stats", kinds=["gram"], examples=6, batch=2, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_vectors_of_an_ia3_adapter_belong_to_its_file(zoo, experts, tmp_path):
    peft = pytest.importorskip("peft")
    suite, head = load_suite(zoo), heads_for(load_suite(zoo))["grey"]
    model = build(str(zoo / "base"), device="cpu")
    settings = peft.IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"])
    tower = peft.get_peft_model(model.module, settings)
    draw = torch.Generator().manual_seed(0)
    learnt = {name: p for name, p in tower.named_parameters() if "ia3_l" in name}
    for p in learnt.values():
        p.data += 0.3 * torch.randn(p.shape, generator=draw)
    tower.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
                   | {"base_model_name_or_path": str(zoo / "base")})
    )  # fmt: skip
    source = str(tmp_path / "adapter")
    found = collect_vectors(source, suite["grey"], head, examples=6, batch=4, device="cpu")
    file = adapter_vectors(source)
    assert set(found.names) == set(file) and len(found.names) == 6 and found.kinds == ("diag", "block")
    assert found.weights_hash == file.weights_hash == load(source).weights_hash
    images, labels = suite["grey"].split("val")
    places = subset_indices(suite["grey"], "val", 6, 0)
    pixels = model.pixels(images[places])
    total = {name: torch.zeros(p.numel(), p.numel()) for name, p in learnt.items()}
    for n in range(6):
        logits = head.logits(model.through(tower, pixels[n : n + 1]))
        loss = F.cross_entropy(logits, labels[places[n : n + 1]])
        for (name, _), g in zip(learnt.items(), torch.autograd.grad(loss, list(learnt.values())), strict=True):
            total[name] += torch.outer(g.flatten(), g.flatten()) / 6
    for name, expected in total.items():
        block = found.block(name.replace(".default", ""))
        torch.testing.assert_close(block.full, expected, rtol=2e-3, atol=1e-7)
        assert block.shape == tuple(learnt[name].shape)
    with pytest.raises(CheckpointError, match="grey is no adapter but whole weights, so it has no vectors"):
        collect_vectors(experts["grey"], suite["grey"], head)


def test_what_does_not_fit_is_refused(zoo, experts):
    suite, heads = load_suite(zoo), heads_for(load_suite(zoo))

    def refused(error: type[MergeLabError], words: str, *args, **options) -> None:
        with pytest.raises(error) as caught:
            collect(*args, kinds=["gram"], **options)
        assert words in str(caught.value)

    grey = (experts["grey"], suite["grey"])
    refused(TaskError, "The head of grey has 4 classes, the task has 3.", *grey, heads["colour"])
    refused(StatisticsError, "There is no order 'balance' of pictures. Did you mean 'balanced'?", *grey, heads["grey"],
            order="balance")  # fmt: skip
    refused(StatisticsError, "At least one example is needed, and examples is 0.", *grey, heads["grey"], examples=0)
    refused(TaskError, "'vall' is not a split. Did you mean 'val'?", *grey, heads["grey"], split="vall")
    with pytest.raises(StatisticsError, match="There is no expert for the task 'stripes'"):
        collect_zoo(zoo, experts, zoo / "nowhere", kinds=["gram"], tasks=["stripes"])
    with pytest.raises(TaskError, match="There is no head for the task 'grey'"):
        collect_zoo(zoo, experts, zoo / "nowhere", kinds=["gram"], heads={"colour": heads["colour"]})


def test_the_verb(zoo, experts, tmp_path, capsys):
    common = ["stats", str(zoo), "--examples", "5", "--batch", "5", "--device", "cpu"]
    assert main([*common, "--kinds", "gram,kfac,diag", "--estimate"]) == 0
    assert "Nothing was collected." in capsys.readouterr().out
    assert main([*common, "--kinds", "gram,kfac,diag", "--out", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().out
    assert "grey" in said and "statistics of 2 tasks" in said
    assert set(read_folder(tmp_path / "all")) == {"grey", "colour"}
    assert main([*common, "--out", str(tmp_path / "one"), "--tasks", "colour", "--fisher", "sampled", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["tasks"]) == ["colour"] and result["tasks"]["colour"]["fisher"] == "sampled"
    single = ["stats", experts["grey"], "--kinds", "gram", "--examples", "5", "--device", "cpu"]
    assert main([*single, "--suite", str(zoo), "--task", "grey", "--out", str(tmp_path / "single")]) == 0
    assert set(read_folder(tmp_path / "single")) == {"grey"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "there"], "is one checkpoint: say on which task, with --suite SUITE --task T."),
        ([], "Say where the statistics go: --out DIR (or --estimate for the cost alone)."),
    ],
)
def test_the_verb_says_what_it_misses(experts, arguments, words, capsys):
    assert main(["stats", experts["grey"], *arguments]) == 2
    assert words in capsys.readouterr().err
