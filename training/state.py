"""The state of a run: every piece that a resumed run needs to go on to the same bits.

Weights, optimisers, averages, switches, replay buffer, data position, clock and random generators; where it is kept
is the shell's business.
"""

from __future__ import annotations

from typing import Any

import torch

from modeling_pgolf.errors import TrainingError

from .trainer import Trainer

# What a state holds.
PARTS = {"steps", "lap", "last_loss", "model", "optimizers", "ema", "swa", "qat", "loop", "replay", "batches"}
PARTS |= {"clock", "random"}


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Return the state of a run; tensors are live, not copies. All processes must ask together."""
    cuda = trainer.accelerator.device.type == "cuda"
    return {
        "steps": trainer.steps,
        "lap": trainer.lap,
        "last_loss": trainer.last_loss,
        "model": dict(trainer.model.named_parameters()),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "ema": trainer.ema.state_dict() if trainer.ema else None,
        "swa": trainer.swa.state_dict() if trainer.swa else None,
        "qat": trainer.qat.on if trainer.qat else None,
        "loop": trainer.loop.on if trainer.loop else None,
        "replay": trainer.replay.state_dict(trainer.accelerator) if trainer.replay else None,
        "batches": trainer.batches.state_dict(),
        "clock": trainer.clock.state_dict(),
        "random": torch.cuda.get_rng_state() if cuda else torch.get_rng_state(),
    }


@torch.no_grad()
def restore_run(trainer: Trainer, state: dict[str, Any]) -> None:
    """Restore what ``run_state`` returned; raises TrainingError where it is the state of another run."""
    refuse_foreign(trainer, state)
    trainer.batches.load_state_dict(state["batches"])  # before anything changes: it may refuse, too
    trainer.steps, trainer.replayed, trainer.last_loss = state["steps"], 0, state["last_loss"]
    trainer.lap = (state["lap"][0], state["lap"][1])
    for name, parameter in trainer.model.named_parameters():
        parameter.copy_(state["model"][name])
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if trainer.ema:
        trainer.ema.load_state_dict(state["ema"])
    if trainer.swa:
        trainer.swa.load_state_dict(state["swa"])
    trainer.switch(bool(state["loop"]), bool(state["qat"]))
    if trainer.replay:
        trainer.replay.load_state_dict(state["replay"], trainer.accelerator)
    trainer.clock.load_state_dict(state["clock"])
    trainer.reported = (trainer.steps, trainer.clock.counted)
    cuda = trainer.accelerator.device.type == "cuda"
    (torch.cuda.set_rng_state if cuda else torch.set_rng_state)(state["random"])


def refuse_foreign(trainer: Trainer, state: dict[str, Any]) -> None:
    """Raise TrainingError where ``state`` has other parameters or other parts than this run."""
    if state.keys() != PARTS:
        raise TrainingError(
            f"the stored state was written by another version of pgolf: it lacks {sorted(PARTS - state.keys())} and "
            f"has {sorted(state.keys() - PARTS)} beside what this version keeps; finish the run with that version, or "
            "remove the state to start afresh"
        )
    found = {name: tuple(tensor.shape) for name, tensor in state["model"].items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in trainer.model.named_parameters()}
    own = {
        "ema": trainer.ema,
        "swa": trainer.swa,
        "qat": trainer.qat,
        "loop": trainer.loop,
        "replay": trainer.replay,
    }
    here = {part: owner is not None for part, owner in own.items()}
    parts = {part: state[part] is not None for part in own}
    if found != wanted or parts != here:
        differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise TrainingError(
            f"the stored state is of another run: parameters differ in {differing[:3]}, it has {parts}, this run "
            f"{here}; remove the state to start afresh"
        )
