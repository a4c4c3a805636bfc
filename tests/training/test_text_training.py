"""A text encoder is trained and alternated like a picture tower: tokens by name, masks, dropout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from mergelab.tasks import Head
from mergelab.training.aggregate import Aggregation
from mergelab.training.atm import Tuned, rounds
from mergelab.training.learner import Learner, Lesson
from mergelab.training.trainer import Trainer
from mergelab.training.tuning import Tuning

transformers = pytest.importorskip("transformers")
SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 12, "max_position_embeddings": 8}  # fmt: skip


def learner() -> Learner:
    torch.manual_seed(0)
    module = transformers.BertModel(transformers.BertConfig(**SIZES))
    return Learner(module, lambda part, inputs: part(**inputs).last_hidden_state[:, 0])


def lesson(task: int) -> Lesson:
    """The first token decides the class; each task has half of the vocabulary."""
    random = torch.Generator().manual_seed(task)
    ids = torch.randint(1, 10, (48, 6), generator=random) + 9 * task
    mask = (torch.arange(6) < torch.randint(2, 7, (48, 1), generator=random)).long()
    head = Head(torch.randn(3, 8, generator=random))
    return Lesson(f"t{task}", {"input_ids": ids * mask, "attention_mask": mask}, ids[:, 0] % 3, head)


def loss(made: Learner, state: Mapping[str, Tensor], one: Lesson) -> float:
    made.load(state)
    with torch.no_grad(), made.training(False):
        return float(made.loss(one, torch.arange(len(one))))


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_rounds_over_two_text_tasks_lower_both_losses(tune: str):
    made, lessons = learner(), [lesson(0), lesson(1)]
    tuning = Tuning(tune=tune, rank=4, rate=0.02, batch=16)
    base = made.state(made.look(lessons[0]))
    assert "pooler.dense.weight" not in base  # the features do not read it

    def tune_all(number: int, now: Mapping[str, Tensor]) -> Iterator[Tuned]:
        for one in lessons:
            with Trainer(made, [one], tuning, now, total=24, key=number) as trainer:
                trainer.run(3 * (number - 1), 3 * number)
                yield Tuned(one.task, trainer.state(), {"start_loss": 1.0})

    *_, last = rounds(base, tune_all, Aggregation(), last=8)
    for one in lessons:
        assert loss(made, last.base, one) < 0.8 * loss(made, base, one)
    assert not any("lora" in name for name, _ in made.module.named_parameters())  # adapters are taken out again
