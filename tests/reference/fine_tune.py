"""Fine-tuning as it is written down: one AdamW a parameter, each with the rate of its block, in one process.

Source: PR 1351's fork and PR 1423; SPEC-11L 5.5.
"""

import math

import torch


def rate_of(name, blocks, config):
    """Return the peak rate of a parameter by its block; None where its block stands still."""
    if ".layers." not in name:
        return config.lr
    block = int(name.split(".layers.")[1].split(".")[0])
    if block < config.frozen_blocks:
        return None
    rise = (block - config.frozen_blocks) / (blocks - 1 - config.frozen_blocks)
    return config.lr * (config.first_block_share + (1 - config.first_block_share) * rise)


def fine_tune(model, rows, blocks, config):
    """Train ``model`` in place on ``rows`` (n, T + 1): ``config.rows`` of them a step, ``config.epochs`` times."""
    rates = {name: rate_of(name, blocks, config) for name, _ in model.named_parameters()}
    moved = {name: p for name, p in model.named_parameters() if rates[name] is not None}
    optimizers = {
        name: torch.optim.AdamW([p], betas=(0.9, 0.999), eps=1e-8, weight_decay=0) for name, p in moved.items()
    }
    for epoch in range(config.epochs):
        half_cosine = 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
        for begin in range(0, len(rows), config.rows):
            batch = rows[begin : begin + config.rows]
            gradients = torch.autograd.grad(
                model(input_ids=batch[:, :-1], shift_labels=batch[:, 1:], use_cache=False).loss, list(moved.values())
            )
            norm = torch.stack([g.norm() for g in gradients]).norm()
            for (name, parameter), gradient in zip(moved.items(), gradients, strict=True):
                parameter.grad = gradient * min(1.0, config.grad_clip / float(norm))
                lowest = 0.1 * config.lr
                for group in optimizers[name].param_groups:
                    group["lr"] = lowest + (rates[name] - lowest) * half_cosine
                optimizers[name].step()
