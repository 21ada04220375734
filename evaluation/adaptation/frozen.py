"""No adaptation: the weights stand still, and the whole stream is one chunk."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..ledger import Posted


@dataclass(frozen=True)
class FrozenConfig:
    """Score with the weights as shipped."""

    chunk_tokens: None = None


class Frozen:
    """The rule that learns nothing."""

    def __init__(self, model: nn.Module, config: FrozenConfig) -> None:
        self.chunk_tokens: int | None = config.chunk_tokens

    def learn(self, posted: Posted, progress: float) -> None:
        """Do nothing."""
