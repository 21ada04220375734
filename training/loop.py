"""The training loop: steps, and the events between them, in their order.

The loop owns order and time: compile warm-up, resume, steps with validations and checkpoints between them, replay,
the average put in place. Source: SPEC-11L 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any, NoReturn, Protocol

from accelerate import Accelerator
from transformers import PreTrainedModel

from modeling_pgolf.attention import fastest_attention
from modeling_pgolf.errors import TrainingError

from .batches import TrainTokens
from .config import TrainingConfig
from .fine_tune import fine_tune
from .garbage import collected_once
from .state import restore_run, run_state
from .streamed import TokenStream
from .telemetry import Log, Telemetry
from .trainer import Trainer

Validate = Callable[[PreTrainedModel], dict[str, float]]


class Checkpoints(Protocol):
    """Where the shell keeps checkpoints: a folder in a run, nothing in a test."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Store ``state`` as that of ``step``."""

    def restore(self) -> dict[str, Any] | None:
        """Return the newest stored state; None where there is none."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a run: steps taken, last training loss in nats per token, seconds by phase.

    replay: ``spans``, how many of the last spans of a process it replayed, ``steps`` over them, ``planned`` ones, and
    whether ``after_clock``; None without replay.
    """

    steps: int
    train_loss: float
    seconds: dict[str, float]
    replay: dict[str, Any] | None = None


def fit(
    model: PreTrainedModel,
    tokens: TrainTokens | TokenStream,
    config: TrainingConfig,
    accelerator: Accelerator,
    *,
    validate: Validate | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    fine_tune_tokens: TrainTokens | None = None,
) -> Trained:
    """Train ``model`` in place and return what happened.

    validate: called with the model as it stands, every ``validate_every`` steps; its result is logged.
    checkpoints: asked to restore at the start, to save every ``checkpoint_every`` steps and behind the last one.
    stop: asked after every step; once it says so on any process, the run ends in a TrainingError, its state saved.
    fine_tune_tokens: what ``config.fine_tune`` goes over.
    Raises TrainingError on a non-finite loss or an uneven number of processes, too.
    """
    with closing(Telemetry(log, config.iterations, config.step_tokens, accelerator.is_main_process)) as telemetry:
        trainer = Trainer(model, tokens, config, accelerator, telemetry)
        with closing(trainer.batches), fastest_attention():
            if config.compile:
                with trainer.clock.phase("compile"):
                    trainer.warm_up()
            if checkpoints is not None and (state := checkpoints.restore()) is not None:
                restore_run(trainer, state)
                accelerator.wait_for_everyone()  # or one could replace what another still reads
                telemetry.event("resumed", step=trainer.steps, seconds=trainer.clock.counted)
            begun = trainer.steps
            with collected_once():
                run_steps(trainer, validate, checkpoints, stop)
                saved = trainer.steps == begun or _due(trainer.steps, config.checkpoint_every)
                if checkpoints is not None and not saved:
                    with trainer.clock.phase("checkpoint"):  # what comes now could be lost with all the rest
                        checkpoints.save(trainer.steps, run_state(trainer))
                replay = None
                if config.replay:
                    if validate:  # what would be published without the replay
                        with trainer.clock.phase("validate"), trainer.as_published():
                            facts = validate(trainer.model)
                        telemetry.event("validation_before_replay", step=trainer.steps, **facts)
                        trainer.model.train()
                    replay = run_replay(trainer, stop)
                trainer.finish()
                if config.fine_tune:
                    run_fine_tune(trainer, fine_tune_tokens, stop)
        telemetry.event("finished", step=trainer.steps, seconds=trainer.clock.seconds)
    return Trained(trainer.steps, trainer.last_loss, dict(trainer.clock.seconds), replay)


def run_steps(
    trainer: Trainer,
    validate: Validate | None,
    checkpoints: Checkpoints | None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Step until the run is over, with validations and checkpoints between steps, outside the counted phase."""
    config, clock, stopped = trainer.config, trainer.clock, False
    while not trainer.finished():
        with clock.phase("step"):
            while not trainer.finished():
                trainer.step()
                stopped = trainer.any_process(stop())
                if (
                    stopped
                    or _due(trainer.steps, config.validate_every)
                    or _due(trainer.steps, config.checkpoint_every)
                ):
                    break
            trainer.wait_for_reader()
        if stopped:
            stop_here(trainer, checkpoints)
        if validate and _due(trainer.steps, config.validate_every):
            with clock.phase("validate"), trainer.true_weights():
                facts = validate(trainer.model)
            trainer.telemetry.event("validation", step=trainer.steps, **facts)
            trainer.model.train()
        if checkpoints and _due(trainer.steps, config.checkpoint_every):
            with clock.phase("checkpoint"):
                checkpoints.save(trainer.steps, run_state(trainer))


def stop_here(trainer: Trainer, checkpoints: Checkpoints | None) -> NoReturn:
    """Save the state of a run that was asked to stop, and raise the TrainingError that ends it."""
    if checkpoints is None:
        raise TrainingError(f"stopped as asked after step {trainer.steps}; nothing keeps states, so none was saved")
    checkpoints.save(trainer.steps, run_state(trainer))
    raise TrainingError(f"stopped as asked after step {trainer.steps}; start the same command again to go on")


def run_replay(trainer: Trainer, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Replay the remembered spans; the ranked form ends with the clock. Returns what ``Trained`` says of it."""
    assert trainer.replay is not None
    config, losses = trainer.replay.config, [math.nan]
    limit = None if config.after_clock else trainer.config.replay_end
    spans = [span for _ in range(config.epochs) for span in trainer.replay.spans]
    with trainer.clock.phase("replay_after_clock" if config.after_clock else "replay"):
        another = room_until(trainer, limit, stop)
        for inputs, targets in takewhile(lambda span: another(), spans):
            losses.append(trainer.replay_step(inputs, targets))
    facts = {"steps": len(losses) - 1, "planned": len(spans), "after_clock": config.after_clock}
    trainer.telemetry.event("replay", **facts, train_loss=losses[-1])
    return {"spans": len(trainer.replay.spans), **facts}


def room_until(trainer: Trainer, limit: float | None, stop: Callable[[], bool] = lambda: False) -> Callable[[], bool]:
    """Return a question to ask before every step of the open phase, the same on all processes.

    It says whether another mean step ends before ``limit`` seconds of the clock; always, without a limit. Once a
    process is asked to stop, it raises TrainingError: the state is that of the last step before the phase.
    """
    steps, before = 0, trainer.clock.counted

    def another() -> bool:
        nonlocal steps
        if trainer.any_process(stop()):
            raise TrainingError(f"stopped as asked behind step {trainer.steps}; start the same command again to go on")
        if limit is None:
            return True
        trainer.clock.synchronize()
        now = trainer.clock.counted
        fits = trainer.shared(now + (now - before) / max(steps, 1)) <= limit
        steps += fits
        return fits

    return another


def run_fine_tune(trainer: Trainer, tokens: TrainTokens | None, stop: Callable[[], bool] = lambda: False) -> None:
    """Fine-tune the published weights; with a reserve of the clock it ends with the clock.

    Raises TrainingError where nobody said on which tokens, where they are too few, or where the loss is not finite.
    """
    if tokens is None:
        raise TrainingError("fine-tuning was asked for, but no tokens were given for it; pass fine_tune_tokens to fit")
    with trainer.clock.phase("fine_tune"):
        another = room_until(trainer, trainer.config.fine_tune_end, stop)
        epochs = fine_tune(trainer.model, tokens, trainer.config, trainer.accelerator, another)
    for number, epoch in enumerate(epochs):
        trainer.telemetry.event("fine_tune", epoch=number, **asdict(epoch), tokens=len(tokens))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
