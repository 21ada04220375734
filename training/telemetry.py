"""What one sees of a run: a progress bar, and one JSON object per event.

The loop reports facts; where they go is the caller's business (``log`` is a plain function of a dictionary).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

Event = dict[str, Any]
Log = Callable[[Event], None]


@dataclass(frozen=True)
class StepFacts:
    """One finished step.

    loss: nats per token. norm: of the gradient before the clip. seconds: counted so far. seconds_left: predicted to
    the end of the loop. mfu: share of the devices' peak arithmetic, None where that is not known.
    """

    step: int
    loss: float
    scale: float
    momentum: float
    norm: float
    seconds: float
    seconds_left: float
    mfu: float | None


class Telemetry:
    """Progress bar over steps, and a log of facts."""

    def __init__(self, log: Log, iterations: int, step_tokens: int, visible: bool) -> None:
        self._log = log
        self._step_tokens = step_tokens
        self._bar = tqdm(total=iterations, desc="train", unit="step", disable=not visible)

    def step(self, facts: StepFacts) -> None:
        """Report a finished step."""
        rate = facts.step * self._step_tokens / max(facts.seconds, 1e-9)
        # The clock may end the run long before its last step: the bar runs to the step predicted for that moment.
        self._bar.total = facts.step + round(facts.seconds_left * facts.step / max(facts.seconds, 1e-9))
        self._bar.n = facts.step
        mfu = {} if facts.mfu is None else {"mfu": f"{facts.mfu:.1%}"}
        self._bar.set_postfix(
            loss=f"{facts.loss:.4f}", lr=f"{facts.scale:.3f}", tokens_per_s=f"{rate:,.0f}",
            left=self._bar.format_interval(facts.seconds_left), **mfu,
        )  # fmt: skip
        self._log(
            {
                "event": "step",
                "step": facts.step,
                "train_loss": facts.loss,
                "lr_scale": facts.scale,
                "momentum": facts.momentum,
                "grad_norm": facts.norm,
                "seconds": facts.seconds,
                "seconds_left": facts.seconds_left,
                "tokens": facts.step * self._step_tokens,
                "tokens_per_second": rate,
                "mfu": facts.mfu,
            }
        )

    def event(self, name: str, **facts: Any) -> None:
        """Report anything else."""
        self._log({"event": name, **facts})

    def close(self) -> None:
        """End the bar."""
        self._bar.refresh()
        self._bar.close()
