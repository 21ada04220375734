"""No adaptation: the weights stand still, and the whole stream is one chunk."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator
from transformers import PreTrainedModel

from ..ledger import Posted


@dataclass(frozen=True)
class FrozenConfig:
    """Score with the weights as shipped."""

    chunk_tokens: None = None

    def build(self, model: PreTrainedModel, window: int, accelerator: Accelerator, compiled: bool) -> Frozen:
        """Build the rule; it needs nothing of all that."""
        return Frozen()


class Frozen:
    """The rule that learns nothing."""

    chunk_tokens: int | None = None

    def learn(self, posted: Posted, progress: float) -> None:
        """Do nothing."""
