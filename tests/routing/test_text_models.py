"""The same numbers from every order of work on text models: a padded encoder and a small decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from row_models import far, jittered, mixtures
from torch import Tensor, nn
from torch.func import functional_call

from mergelab.routing.compression import Compression
from mergelab.routing.decompose import decompose
from mergelab.routing.features import masked_mean
from mergelab.routing.groups import group, order
from mergelab.routing.routed import RoutedModel
from mergelab.routing.rows import RowModule

TASKS = ("a", "b", "c")
IDS = torch.randint(0, 50, (5, 7), generator=torch.Generator().manual_seed(5))
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 7, [1] * 2 + [0] * 5, [1] * 6 + [0]])


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return jittered(BertModel(BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                         intermediate_size=64, max_position_embeddings=16)))  # fmt: skip


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    return jittered(LlamaModel(LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                           num_key_value_heads=2, intermediate_size=64)))  # fmt: skip


def features(call: Any, places: Tensor | slice = slice(None)) -> Tensor:
    """Masked means of the last hidden states: what a text router reads."""
    mask = MASK[places]
    return masked_mean(call(input_ids=IDS[places], attention_mask=mask).last_hidden_state, mask)


@pytest.mark.parametrize("make", [bert, llama])
@torch.no_grad()
def test_every_order_of_work_gives_the_same(make: Any) -> None:
    module = make()
    shared = {n: t.detach().clone() for n, t in module.state_dict().items()}
    draw = torch.Generator().manual_seed(7)
    experts = {t: {n: v + 0.1 * torch.randn(v.shape, generator=draw) if v.is_floating_point() else v
                   for n, v in shared.items()} for t in TASKS}  # fmt: skip
    routed = RoutedModel(TASKS, shared, decompose(shared, experts, Compression(rank=3)).parts)
    rows = mixtures()

    def merged(row: Tensor, places: Tensor | slice) -> Tensor:
        state = routed.state(row)
        return features(lambda **inputs: functional_call(module, state, (), inputs), places)

    per_input = torch.cat([merged(row, slice(i, i + 1)) for i, row in enumerate(rows)])
    assert far(features(module), per_input) > 1e-2  # the parts matter
    batched = RowModule(module, shared, [routed.parts[t] for t in TASKS])
    assert far(batched(rows, features), per_input) < 2e-5
    found = group(None, rows, groups_per_bin=5)
    grouped = torch.empty_like(per_input)
    for weights, places in zip(found.weights, order(found), strict=True):
        grouped[places] = merged(weights, places)
    assert far(grouped, per_input) < 2e-5
    static = merged(rows[3], slice(None))
    assert far(batched(rows[3:4], features), static) < 2e-5
    assert far(static[3:4], per_input[3:4]) < 2e-5


@pytest.mark.parametrize("make", [bert, llama])
@torch.no_grad()
def test_features_of_a_padded_batch_are_those_of_each_text_alone(make: Any) -> None:
    module = make()
    whole = features(module)
    for i, length in enumerate(MASK.sum(1).tolist()):
        alone = module(input_ids=IDS[i : i + 1, :length]).last_hidden_state.mean(1)
        assert far(whole[i : i + 1], alone) < 2e-5
