"""The training graph: what is compiled, and what a process wraps to average gradients."""

from __future__ import annotations

from torch import Tensor, nn


class NextTokenLoss(nn.Module):
    """The training graph: tokens in, mean loss out, logits never leave it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, in nats per token, of int64 inputs and targets (B, T)."""
        loss: Tensor = self.model(input_ids=inputs, shift_labels=targets, use_cache=False).loss
        return loss
