"""CLIP: transformers' and OpenCLIP's layouts give the same logits from the same weights."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from tiny_models import TEXT, VISION, clip_config, open_clip_config, open_clip_state, random_clip

from mergelab.errors import CheckpointError, TaskError
from mergelab.models import build
from mergelab.tasks import Head, Task, zero_shot_head


@pytest.fixture(params=["quick_gelu", "gelu"])
def pair(request, saved):
    clip = random_clip(request.param)
    state = dict(clip.state_dict())
    hf = build(str(saved(state, clip_config(request.param), "hf")), device="cpu")
    other = build(str(saved(open_clip_state(state), open_clip_config(request.param), "oc")), device="cpu")
    return clip, hf, other


TASK = Task("pets", "Pets", ("cat", "dog", "red fox"), path=None, templates=("a photo of a {}.", "a drawing of a {}."))


def test_both_layouts_give_the_same_features_and_logits(pair, pictures):
    _, hf, other = pair
    assert (hf.family, other.family, hf.width, other.width, hf.resolution, other.resolution) == (
        "hf_clip", "open_clip", 24, 24, 28, 28)  # fmt: skip
    torch.testing.assert_close(hf.encode(pictures), other.encode(pictures), rtol=1e-4, atol=1e-5)
    first, second = zero_shot_head(hf, TASK), zero_shot_head(other, TASK)
    torch.testing.assert_close(first.weight, second.weight, rtol=1e-4, atol=1e-5)
    assert first.scale == pytest.approx(second.scale)
    torch.testing.assert_close(
        first.logits(hf.encode(pictures)), second.logits(other.encode(pictures)), rtol=1e-3, atol=1e-4
    )


def test_logits_are_those_of_transformers_own_forward(pair, pictures):
    from open_clip.tokenizer import SimpleTokenizer

    clip, hf, other = pair
    tokens = SimpleTokenizer(context_length=20)(["a photo of a cat.", "zebra", "a red fox at night"])
    with torch.no_grad():
        expected = clip(input_ids=tokens, pixel_values=hf.preprocess(pictures)).logits_per_image
    for model in (hf, other):
        found = torch.exp(torch.tensor(model.logit_scale)) * model.encode(pictures) @ model.encode_tokens(tokens).T
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_activation_is_not_ignored(saved, pictures):
    state = dict(random_clip("quick_gelu").state_dict())
    quick = build(str(saved(state, clip_config("quick_gelu"), "q")), device="cpu")
    plain = build(str(saved(state, clip_config("gelu"), "g")), device="cpu")
    assert (quick.encode(pictures) - plain.encode(pictures)).abs().max() > 1e-4


def test_zero_shot_head_is_mean_of_normalised_then_normalised(pair):
    _, hf, _ = pair
    head = zero_shot_head(hf, TASK)
    for row, name in zip(head.weight, TASK.classes, strict=True):
        a, b = (hf.encode_text([t.replace("{}", name)])[0] for t in TASK.templates)
        mean = (a / a.norm() + b / b.norm()) / 2
        torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-5, atol=1e-6)
    assert head.scale == pytest.approx(float(torch.tensor(hf.logit_scale).exp()))
    assert head.kind == "zero-shot"


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_vision_tower_alone_with_the_projection_in_the_head(saved, pictures, prefix):
    clip = random_clip()
    full = build(str(saved(clip.state_dict(), clip_config(), "full")), device="cpu")
    state = {
        prefix + n.removeprefix("vision_model."): t for n, t in clip.state_dict().items() if n.startswith("vision")
    }
    config = {"model_type": "clip_vision_model", **VISION}
    tower = build(str(saved(state, config, "tower")), device="cpu")
    assert (tower.width, tower.has_text) == (48, False)
    words = zero_shot_head(full, TASK)
    projected = Head(words.weight, scale=words.scale, normalize=True, projection=clip.visual_projection.weight.detach())
    torch.testing.assert_close(
        projected.logits(tower.encode(pictures)), words.logits(full.encode(pictures)), rtol=1e-3, atol=1e-4
    )
    with pytest.raises(TaskError, match="cannot embed words"):
        tower.encode_text(["cat"])


def test_vision_tower_with_projection(saved, pictures):
    clip = random_clip()
    full = build(str(saved(clip.state_dict(), clip_config(), "full")), device="cpu")
    state = {n: t for n, t in clip.state_dict().items() if n.startswith("visi") or n == "visual_projection.weight"}
    tower = build(
        str(saved(state, {"model_type": "clip_vision_model", "projection_dim": 24, **VISION}, "t")), device="cpu"
    )
    assert torch.equal(tower.encode(pictures), full.encode(pictures))


def test_position_ids_of_old_checkpoints_are_left_out(saved, pictures):
    state = dict(random_clip().state_dict())
    plain = build(str(saved(state, clip_config(), "a")), device="cpu").encode(pictures)
    state["vision_model.embeddings.position_ids"] = torch.arange(5).expand(1, -1)
    state["text_model.embeddings.position_ids"] = torch.arange(20).expand(1, -1)
    assert torch.equal(build(str(saved(state, clip_config(), "b")), device="cpu").encode(pictures), plain)


def test_unknown_vocabulary_without_a_tokenizer_has_no_words(saved):
    from transformers import CLIPConfig, CLIPModel

    small = {**TEXT, "vocab_size": 60, "eos_token_id": 59}
    config = {"model_type": "clip", "projection_dim": 8, "vision_config": VISION, "text_config": small}
    module = CLIPModel(CLIPConfig(vision_config=VISION, text_config={**small, "bos_token_id": 58, "pad_token_id": 0},
                                  projection_dim=8))  # fmt: skip
    model = build(str(saved(module.state_dict(), config)), device="cpu")
    assert not model.has_text
    tokens = torch.tensor([[58, 3, 4, 59, 0, 0], [58, 7, 59, 0, 0, 0]])
    with torch.no_grad():
        expected = F.normalize(module.eval().get_text_features(input_ids=tokens).pooler_output, dim=-1)
    torch.testing.assert_close(model.encode_tokens(tokens), expected, rtol=1e-5, atol=1e-6)


def test_open_clip_resnet_tower(saved, pictures):
    from open_clip.model import CLIP

    cfg = {"embed_dim": 16, "vision_cfg": {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1], "head_width": 16},
           "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}  # fmt: skip
    torch.manual_seed(0)
    module = CLIP(**json.loads(json.dumps(cfg))).eval()
    model = build(str(saved(module.state_dict(), {"model_cfg": cfg})), device="cpu")
    with torch.no_grad():
        expected = module.encode_image(model.preprocess(pictures), normalize=True)
    torch.testing.assert_close(model.encode(pictures), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("vision_cfg", {"timm_model_name": "resnet50"}, "timm_model_name"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name"),
        ("text_cfg", {"vocab_size": 10**12}, "vocab_size"),
        ("vision_cfg", {"width": 16384}, "asks for"),
        ("vision_cfg", {"layers": 10**6}, "layers"),
        ("vision_cfg", {"block_type": "__import__"}, "block_type"),
        ("vision_cfg", {"surprise": 1}, "surprise"),
        ("", {"custom_text": True}, "custom_text"),
        ("", {"vision_cfg": 3}, "vision_cfg must be an object"),
    ],
)
def test_open_clip_configurations_that_lie(saved, where, change, message):
    config = open_clip_config()
    (config["model_cfg"][where] if where else config["model_cfg"]).update(change)
    with pytest.raises(CheckpointError, match=message):
        build(str(saved(open_clip_state(dict(random_clip().state_dict())), config)), device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {**VISION, "hidden_size": 2**40}}, "hidden_size"),
        ({"text_config": 5}, "text_config must be an object"),
        ({"text_config": {**TEXT, "vocab_size": 2_000_000}}, "asks for"),
        ({"projection_dim": None}, "projection_dim"),
    ],
)
def test_clip_configurations_that_lie(saved, change, message):
    with pytest.raises(CheckpointError, match=message):
        build(str(saved(random_clip().state_dict(), {**clip_config(), **change})), device="cpu")


def test_tokenizer_files_beside_the_weights_are_used(saved):
    """A byte-pair vocabulary of a few letters, as CLIP's own files are laid out."""
    letters = {"<|startoftext|>": 0, "<|endoftext|>": 1, "c": 2, "a": 3, "t</w>": 4, "ca": 5, "cat</w>": 6, "a</w>": 7}
    small = {**TEXT, "vocab_size": 8, "eos_token_id": 1}
    from transformers import CLIPConfig, CLIPModel

    parts = {"vision_config": VISION, "projection_dim": 8}
    module = CLIPModel(CLIPConfig(**parts, text_config={**small, "bos_token_id": 0, "pad_token_id": 1}))
    folder = saved(module.state_dict(), {"model_type": "clip", **parts, "text_config": small}, vocab=letters)
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    model = build(str(folder), device="cpu")
    assert model.has_text
    tokens = torch.tensor([[0, 6, 1], [0, 7, 1]])
    torch.testing.assert_close(model.encode_text(["cat", "a"]), model.encode_tokens(tokens))


def test_a_clip_model_is_measured_by_class_names(saved, tmp_path):
    import numpy as np

    from mergelab.tasks import evaluate, load_suite

    model = build(str(saved(random_clip().state_dict(), clip_config(), "clip")), device="cpu")
    rng = np.random.RandomState(0)
    pictures = rng.randint(0, 256, (12, 32, 32)).astype(np.uint8)
    words = np.array(["cat", "dog", "fox"])
    scores = model.encode(pictures) @ model.encode_text([f"a photo of {w}." for w in words]).T
    (tmp_path / "suite").mkdir()
    truth = scores.argmax(-1).numpy()
    labels = np.where(np.arange(12) < 9, truth, (truth + 1) % 3)
    np.savez(tmp_path / "suite" / "pets.npz", x_test=pictures, y_test=labels, classes=words)
    found = evaluate(model, load_suite(tmp_path / "suite"))
    assert (found.tasks["pets"].accuracy, found.tasks["pets"].head) == (0.75, "zero-shot")
    assert found.data_used == "class names of all tasks"
