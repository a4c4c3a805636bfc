"""Which labels a Fisher is taken at, as gradients on the logits.

The log-likelihood of an example is ``log p(y|x)`` of its class, or the *mean* of ``log p(y_t|x)`` over its target
tokens. Its gradient on the logits is ``e_y - p`` (over the number of target tokens), so nothing needs a loss function:

- ``empirical``: y are the data's labels;
- ``sampled``: one y drawn from the model for each example (each target token);
- ``exact``: the expectation over all y, as one pass for each of them with the gradient ``sqrt(p_y) (e_y - p)``: squares
  and outer products of it add up to ``sum_y p_y g_y g_yᵀ``. Tokens are independent given the input and each token's
  gradient has the mean 0, so for logits [N, T, K] there is one pass for each (target token, class).

Draws depend on the seed and on how many examples (target tokens) came before, not on batches or padding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..errors import StatisticsError, suggest

FISHERS = ("empirical", "sampled", "exact")
#: The most backward passes a batch that ``exact`` may take unless told: one for each class (each token and class).
CLASS_LIMIT = 64
IGNORED = -100


class Labels:
    """The gradients of log-likelihoods on logits, batch after batch."""

    def __init__(self, fisher: str = "empirical", seed: int = 0, limit: int = CLASS_LIMIT) -> None:
        if fisher not in FISHERS:
            raise StatisticsError(f"There is no Fisher {str(fisher)[:60]!r}.{suggest(str(fisher), FISHERS)}")
        self.fisher, self.limit = fisher, limit
        self._draws = np.random.RandomState(seed % 2**32)  # one stream, whatever the batches are

    def passes(self, logits: Tensor, labels: Tensor | None, mask: Tensor | None = None) -> Iterator[Tensor]:
        """Gradients like ``logits`` [N, K] or [N, T, K], one for each backward pass to take.

        ``labels`` [N] or [N, T] with -100 where nothing is predicted; ``sampled`` and ``exact`` need none: all classes,
        and all tokens of ``mask`` [N, T] (all at all where there is none).
        """
        classes = logits.shape[-1]
        if self.fisher == "empirical" and labels is None:
            raise StatisticsError(
                "The empirical Fisher needs labels and the batch has none: give them, or take fisher='sampled' or "
                "'exact'."
            )
        if labels is not None:
            _check(labels, logits)
        wide = torch.float32 if logits.device.type == "mps" else torch.float64
        share = logits.detach().to(wide).softmax(-1)  # 1 - p is lost in float32 where an expert is sure
        where = _targets(logits, labels, mask)
        scale = where.to(wide) if where.ndim == 1 else where.to(wide) / where.sum(1, keepdim=True)
        if self.fisher == "exact":
            yield from self._exact(share, where, scale, logits.dtype)
            return
        if self.fisher == "sampled":
            chosen = self._sample(share, where)
        else:
            assert labels is not None
            chosen = labels.to(share.device).clamp_min(0)
        yield (scale.unsqueeze(-1) * (_one_hot(chosen, classes, share) - share)).to(logits.dtype)

    def count(self, logits: Tensor, labels: Tensor | None, mask: Tensor | None = None) -> int:
        """How many passes there will be; raises StatisticsError where they are more than the limit."""
        if self.fisher != "exact":
            return 1
        where = _targets(logits, labels, mask)
        tokens = 1 if where.ndim == 1 else int(where.sum(1).max())
        return self._allowed(tokens, logits.shape[-1])

    def _allowed(self, tokens: int, classes: int) -> int:
        if tokens * classes > self.limit:
            what = f"{classes} classes" if tokens == 1 else f"{tokens} target tokens of {classes} classes"
            raise StatisticsError(
                f"The exact Fisher takes one backward pass for each label, here {tokens * classes} for {what}, and "
                f"the limit is {self.limit}: take fisher='sampled', or raise class_limit."
            )
        return tokens * classes

    def _exact(self, share: Tensor, where: Tensor, scale: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
        classes = share.shape[-1]
        if where.ndim == 1:
            self._allowed(1, classes)
            turns = [scale]
        else:
            most = int(where.sum(1).max())
            self._allowed(most, classes)
            turn = where.cumsum(1)  # the n-th target token of every example together
            turns = [scale * ((turn == n) & where) for n in range(1, most + 1)]
        for weight in turns:
            for label in range(classes):
                gradient = -share
                gradient[..., label] += 1
                yield (weight.unsqueeze(-1) * share[..., label : label + 1].sqrt() * gradient).to(dtype)

    def _sample(self, share: Tensor, where: Tensor) -> Tensor:
        drawn = torch.zeros(where.shape, dtype=share.dtype)
        places = where.cpu()
        drawn[places] = torch.from_numpy(self._draws.random_sample(int(places.sum()))).to(share.dtype)
        total = share.cumsum(-1)
        below = total <= drawn.to(share.device).unsqueeze(-1) * total[..., -1:]
        return below.sum(-1).clamp_max(share.shape[-1] - 1)


def _one_hot(chosen: Tensor, classes: int, like: Tensor) -> Tensor:
    return torch.zeros(*chosen.shape, classes, dtype=like.dtype, device=like.device).scatter_(
        -1, chosen.unsqueeze(-1), 1.0
    )


def _targets(logits: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
    """Where something is predicted: bool [N] or [N, T]."""
    lead, device = logits.shape[:-1], logits.device
    if logits.ndim == 2:
        where = torch.ones(lead, dtype=torch.bool, device=device)
        if labels is not None and bool((labels == IGNORED).any()):
            raise StatisticsError(f"A label is {IGNORED}, which ignores a token; an example of a classifier needs one.")
        return where
    if labels is not None:
        where = labels.to(device) != IGNORED
    elif mask is not None:
        if tuple(mask.shape) != tuple(lead):
            raise StatisticsError(
                f"The mask has the shape {list(mask.shape)} and the logits {list(logits.shape)}: give labels [N, T] "
                f"with {IGNORED} where nothing is predicted."
            )
        where = mask.to(device).bool()
    else:
        where = torch.ones(lead, dtype=torch.bool, device=device)
    empty = (~where.any(1)).nonzero().flatten()
    if len(empty):
        raise StatisticsError(f"Example {int(empty[0])} of a batch has no target token: all its labels are ignored.")
    return where


def _check(labels: Tensor, logits: Tensor) -> None:
    lead, classes = tuple(logits.shape[:-1]), logits.shape[-1]
    if tuple(labels.shape) != lead:
        raise StatisticsError(
            f"The labels have the shape {list(labels.shape)}, the logits {list(logits.shape)}: labels {list(lead)} "
            "were expected."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise StatisticsError(
            f"The labels are {str(labels.dtype).removeprefix('torch.')}; whole numbers were expected."
        )
    told = labels[labels != IGNORED]
    if told.numel() and not (int(told.min()) >= 0 and int(told.max()) < classes):
        wrong = int(told.min()) if int(told.min()) < 0 else int(told.max())
        raise StatisticsError(f"A label is {wrong} and the model has {classes} classes (0 to {classes - 1}).")
