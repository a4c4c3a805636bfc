"""Fine-tuning an image tower and a linear head together on one task: every weight, LoRA or (IA)3.

The trainer knows nothing of files or model families: it gets a module, a differentiable function from ``uint8`` images
to features, and labelled images. The order of the images, the adapter's start and so the result depend on ``seed`` only
(and, in the last bits, on the machine and the number of threads).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import MergeLabError
from ..progress import Progress, Stop, report

TUNES = ("full", "lora", "ia3")
#: ``features(module, images)``: uint8 ``[N, H, W]`` or ``[N, H, W, 3]`` to float32 ``[N, width]``, with gradients.
Features = Callable[[nn.Module, Tensor], Tensor]
_KEYS_VALUES, _MLP_OUT = ("k_proj", "v_proj", "key", "value"), ("fc2", "c_proj", "down_proj")
_RATES = {"full": 3e-5, "lora": 1e-3, "ia3": 1e-2}


@dataclass(frozen=True)
class Settings:
    """How to fine-tune. ``rate`` is AdamW's for the tower (``None``: 3e-5 full, 1e-3 LoRA, 1e-2 (IA)3)."""

    tune: str = "lora"
    epochs: int = 3
    batch: int = 64
    rate: float | None = None
    head_rate: float = 3e-3
    rank: int = 16
    alpha: int | None = None  # LoRA's alpha; None: the rank, so that the dense delta is B·A
    weight_decay: float = 0.01
    warmup: float = 0.05  # part of all steps in which the rates rise from zero, before they fall along a cosine
    seed: int = 0
    precision: str = "auto"  # "auto" | "float32" | "bfloat16"

    def __post_init__(self) -> None:
        if self.tune not in TUNES:
            raise MergeLabError(f"Unknown way to tune {self.tune!r}. Choose one of {', '.join(TUNES)}.")
        if self.epochs < 1 or self.batch < 1 or self.rank < 1:
            raise MergeLabError("epochs, batch and rank must be at least 1.")

    @property
    def tower_rate(self) -> float:
        return _RATES[self.tune] if self.rate is None else self.rate


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned tower with its head. ``module`` is the given module (full) or a ``peft.PeftModel`` around it."""

    module: nn.Module
    weight: Tensor  # [classes, width] float32
    bias: Tensor  # [classes] float32
    losses: tuple[float, ...] = field(repr=False)  # mean training loss of each epoch
    samples: int  # pictures seen, repeats counted


def finetune(
    module: nn.Module,
    features: Features,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    settings: Settings | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Tuned:
    """Train ``module`` and a new zero-started head on ``images`` (uint8 ``[N, ...]``) and ``labels`` (``[N]``).

    Cross-entropy with AdamW; the head has its own rate. Changes ``module`` in place. Raises
    :class:`~mergelab.errors.Cancelled` between two steps when ``stop`` is set.
    """
    settings = settings or Settings()
    if len(images) == 0 or len(images) != len(labels):
        raise MergeLabError(f"Cannot train on {len(images)} images with {len(labels)} labels: give one label an image.")
    torch.manual_seed(settings.seed)
    device = next(module.parameters()).device
    with torch.no_grad():
        first = torch.from_numpy(images[:1]).to(device)
        width = features(module, first).shape[1]
        used = linear_layers(module, lambda: features(module, first))
    tower = adapt(module, settings, used)
    head = nn.Linear(width, classes, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    total = settings.epochs * math.ceil(len(images) / settings.batch)
    optimiser, schedule = _optimiser(tower, head, settings, total)
    tower.train()
    losses, step = [], 0
    for epoch in range(settings.epochs):
        running = torch.zeros((), device=device)
        for chosen in _batches(len(images), settings, epoch):
            if stop is not None:
                stop.check()
            x, y = torch.from_numpy(images[chosen]).to(device), torch.from_numpy(labels[chosen]).long().to(device)
            with _autocast(settings, device):
                loss = functional.cross_entropy(head(features(tower, x)).float(), y)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            running += loss.detach() * len(chosen)
            report(progress, step, total, f"epoch {epoch + 1} of {settings.epochs}")
        losses.append(float(running) / len(images))
    if not math.isfinite(losses[-1]):
        raise MergeLabError(f"Training diverged (loss {losses[-1]}). Lower the rate {settings.tower_rate:g}.")
    tower.eval()
    weight, bias = head.weight.detach().cpu(), head.bias.detach().cpu()
    return Tuned(tower, weight, bias, tuple(losses), settings.epochs * len(images))


def adapt(module: nn.Module, settings: Settings, used: Sequence[str] | None = None) -> nn.Module:
    """What is trained: ``module`` itself (full), or ``module`` inside a ``PeftModel`` whose adapters alone train.

    LoRA (Hu et al. 2021) sits on every linear layer; (IA)3 (Liu et al. 2022) scales keys, values and the inputs of the
    second layer of every MLP, found by the usual names of those layers. ``used`` are the linear layers to choose from
    (default: all).
    """
    every = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    chosen = every if used is None else [name for name in every if name in set(used)]
    for parameter in module.parameters():
        parameter.requires_grad_(settings.tune == "full")
    if settings.tune == "full":
        return module
    from peft import IA3Config, LoraConfig, get_peft_model

    config: LoraConfig | IA3Config
    if settings.tune == "lora":
        alpha = settings.rank if settings.alpha is None else settings.alpha
        config = LoraConfig(r=settings.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=_targets(chosen, every))
    else:
        inner = [name for name in chosen if name.split(".")[-1] in _MLP_OUT]
        scaled = [name for name in chosen if name.split(".")[-1] in _KEYS_VALUES] + inner
        if not scaled:
            raise MergeLabError("(IA)3 found no key, value or MLP layer by name in this model. Use lora or full.")
        config = IA3Config(target_modules=_targets(scaled, every), feedforward_modules=_targets(inner, every))
    return get_peft_model(module, config)  # type: ignore[arg-type]


def linear_layers(module: nn.Module, run: Callable[[], object]) -> list[str]:
    """Names of the linear layers that ``run`` calls: no text side, no weights that are read past their layer."""
    called: set[str] = set()
    hooks = [
        part.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(called)


def _targets(chosen: Sequence[str], every: Sequence[str]) -> list[str]:
    """Layers as peft names them: by their last parts (``q_proj``) where these mean no other linear layer."""
    short = {name.split(".")[-1] for name in chosen}
    exact = {name for name in every if name.split(".")[-1] in short} == set(chosen)
    return sorted(short if exact else chosen)


def _optimiser(
    tower: nn.Module, head: nn.Module, settings: Settings, total: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    warm = max(1, round(settings.warmup * total))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    trained = [p for p in tower.parameters() if p.requires_grad]
    groups = [
        {"params": trained, "lr": settings.tower_rate},
        {"params": list(head.parameters()), "lr": settings.head_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _batches(n: int, settings: Settings, epoch: int) -> Iterator[np.ndarray]:
    order = np.random.default_rng([settings.seed, epoch]).permutation(n)
    for start in range(0, n, settings.batch):
        yield order[start : start + settings.batch]


def _autocast(settings: Settings, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where the hardware computes in it; plain float32 elsewhere, where it would only be slower."""
    wanted = settings.precision == "bfloat16" or (settings.precision == "auto" and fast_bfloat16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def fast_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` computes in bfloat16 natively; on a CPU, whether it has AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)
