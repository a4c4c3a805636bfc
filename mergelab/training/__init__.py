"""Fine-tuning and learning from unlabelled inputs: the only room that takes gradients of the towers."""

from __future__ import annotations

from .adamerging import learn
from .finetune import Settings, Tuned, finetune
from .inputs import Unlabelled, unlabelled
from .learned import Learned

__all__ = ["Learned", "Settings", "Tuned", "Unlabelled", "finetune", "learn", "unlabelled"]
