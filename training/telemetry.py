"""What one sees of a run: a progress bar, and one JSON object per event.

The loop reports facts; where they go is the caller's business (``log`` is a plain function of a dictionary).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

Event = dict[str, Any]
Log = Callable[[Event], None]


class Telemetry:
    """Progress bar over steps, or over seconds where the clock ends the run first."""

    def __init__(self, log: Log, iterations: int, step_tokens: int, visible: bool) -> None:
        self._log = log
        self._step_tokens = step_tokens
        self._bar = tqdm(total=iterations, desc="train", unit="step", disable=not visible)

    def step(self, step: int, loss: float, scale: float, momentum: float, norm: float, seconds: float) -> None:
        """Report a finished step: loss in nats per token, gradient norm before the clip, counted seconds so far."""
        rate = step * self._step_tokens / max(seconds, 1e-9)
        self._bar.n = step
        self._bar.set_postfix(loss=f"{loss:.4f}", lr=f"{scale:.3f}", tokens_per_s=f"{rate:,.0f}")
        self._log(
            {
                "event": "step",
                "step": step,
                "train_loss": loss,
                "lr_scale": scale,
                "momentum": momentum,
                "grad_norm": norm,
                "seconds": seconds,
                "tokens": step * self._step_tokens,
            }
        )

    def event(self, name: str, **facts: Any) -> None:
        """Report anything else."""
        self._log({"event": name, **facts})

    def close(self) -> None:
        """End the bar."""
        self._bar.refresh()
        self._bar.close()
