"""The row pass on whole models equals each row's own merged model, tensor by tensor merged in the plainest way."""

from __future__ import annotations

import pytest
import torch
from row_models import KINDS, by_row, far, jittered, merged, mixtures, parts_for
from torch import Tensor, nn

from mergelab.routing.rows import RowModule

ROWS = 5
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
          "image_size": 28, "patch_size": 14}  # fmt: skip
TEXT = {"hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 5,
        "vocab_size": 64, "max_position_embeddings": 20}  # fmt: skip
LANGUAGE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": 50, "max_position_embeddings": 32}  # fmt: skip


def pixels(side: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(5))


def tokens(rows: int = ROWS, length: int = 7, words: int = 50) -> Tensor:
    return torch.randint(3, words, (rows, length), generator=torch.Generator().manual_seed(6))


def dinov2(side: int, **settings: object):
    from transformers import Dinov2Config, Dinov2Model

    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    x = pixels(side)
    return Dinov2Model(Dinov2Config(**config, **settings)), lambda m, s: m(pixel_values=x[s]).last_hidden_state


def clip_tower():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    x = pixels(28)
    return CLIPVisionModel(CLIPVisionConfig(**VISION)), lambda m, s: m(pixel_values=x[s]).pooler_output


def clip(side: str):
    from transformers import CLIPConfig, CLIPModel

    x, ids = pixels(28), tokens(words=60)
    ids[:, -1] = 63

    def call(m: nn.Module, s: slice) -> Tensor:
        if side == "image":
            return m.visual_projection(m.vision_model(pixel_values=x[s]).pooler_output)
        return m.text_projection(m.text_model(input_ids=ids[s]).pooler_output)

    text = {**TEXT, "eos_token_id": 63, "bos_token_id": 0, "pad_token_id": 1}
    return CLIPModel(CLIPConfig(vision_config=VISION, text_config=text, projection_dim=24)), call


def open_clip(side: str, **vision: object):
    from open_clip.model import CLIP

    x, ids = pixels(28), tokens(length=8, words=60)
    base = {"layers": 2, "width": 48, "head_width": 16, "image_size": 28, "patch_size": 14}
    module = CLIP(24, {**base, **vision}, {"layers": 2, "width": 32, "heads": 2, "context_length": 8, "vocab_size": 64})
    return module, lambda m, s: m.encode_image(x[s]) if side == "image" else m.encode_text(ids[s])


def bert():
    from transformers import BertConfig, BertModel

    ids = tokens()
    mask = torch.ones_like(ids)
    for row, length in enumerate((7, 3, 5, 1, 6)):
        mask[row, length:] = 0
    ids[mask == 0] = 0
    kinds = tokens(words=5) % 2

    def call(m: nn.Module, s: slice) -> Tensor:
        hidden = m(input_ids=ids[s], attention_mask=mask[s], token_type_ids=kinds[s]).last_hidden_state
        return hidden * mask[s, :, None]

    return BertModel(BertConfig(**LANGUAGE)), call


def llama(**settings: object):
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = tokens()
    config = LlamaConfig(**LANGUAGE, **{"num_key_value_heads": 2, "tie_word_embeddings": False, **settings})
    return LlamaForCausalLM(config), lambda m, s: m(input_ids=ids[s], use_cache=False).logits


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = tokens()
    module = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=32))
    return module, lambda m, s: m(input_ids=ids[s], use_cache=False).logits


MODELS = {
    "dinov2": lambda: dinov2(56),
    "dinov2 at another size": lambda: dinov2(70),
    "dinov2 with gated layers": lambda: dinov2(56, use_swiglu_ffn=True),
    "clip vision model": clip_tower,
    "clip image side": lambda: clip("image"),
    "clip text side": lambda: clip("text"),
    "open_clip": lambda: open_clip("image"),
    "open_clip with layer scales": lambda: open_clip("image", ls_init_value=0.5),
    "open_clip mean of tokens": lambda: open_clip("image", pool_type="avg", final_ln_after_pool=True),
    "open_clip own attention": lambda: open_clip("image", block_type="custom", qk_norm=False, scale_attn_inner=True),
    "open_clip text side": lambda: open_clip("text"),
    "bert": bert,
    "llama": llama,
    "gpt2, tied": gpt2,
}


@pytest.mark.parametrize("kinds", [("low",), ("dense",), KINDS], ids=["factors", "whole", "mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_its_merged_model(name: str, kinds: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    module, call = MODELS[name]()
    jittered(module)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    parts, w = parts_for(module, kinds=kinds), mixtures(ROWS)
    if name.startswith("gpt2"):  # one tensor with two names: named once
        parts = [{n: p for n, p in part.items() if n != "lm_head.weight"} for part in parts]
    rows = RowModule(module, None, parts)
    every = slice(None)
    with torch.inference_mode():
        plain, outside = call(module, every), call(rows.module, every)
        got = rows(w, lambda m: call(m, every))
        after = call(rows.module, every)
    want = by_row(module, parts, w, call)
    assert far(plain, want) > 0.05  # the parts do matter
    assert far(got, want) < 2e-5
    assert far(got[2], plain[2]) < 2e-5  # the row of zeros is the shared model
    with torch.inference_mode():  # one row of weights holds for a whole batch
        single = rows(w[3:4], lambda m: call(m, every))
        assert far(single, call(merged(module, parts, w[3]), every)) < 2e-5
    assert torch.equal(outside, plain) and torch.equal(after, plain)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


@pytest.mark.parametrize("name", ["dinov2 at another size", "clip image side", "open_clip", "bert", "gpt2, tied"])
def test_the_check_passes_on_models_that_are_carried(name: str) -> None:
    torch.manual_seed(0)
    module, call = MODELS[name]()
    jittered(module)
    parts = parts_for(module, skip=("lm_head.weight",))
    RowModule(module, None, parts).check(lambda m, n: call(m, slice(n)))
