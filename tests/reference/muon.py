"""Muon as it is written down: one matrix at a time, nothing stacked, nothing transposed that need not be.

Source: Keller Jordan, Muon (2024); weight decay, PR 162; SPEC-11L 2.3.
"""

import math

# The quintic's coefficients and the number of steps, SPEC-11L 2.3.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


def newton_schulz(G, dtype):
    """Push the singular values of one matrix towards 1."""
    X = G.to(dtype)
    X = X / (X.norm() + 1e-7)
    if G.shape[0] > G.shape[1]:
        X = X.T
    for _ in range(STEPS):
        gram = X @ X.T
        X = A * X + (B * gram + C * gram @ gram) @ X
    return X.T if G.shape[0] > G.shape[1] else X


def muon_step(W, g, m, lr, momentum, weight_decay, dtype):
    """Move the matrix ``W`` and its momentum ``m`` in place; without a gradient the matrix only decays."""
    rows, cols = W.shape
    if g is not None:
        m.mul_(momentum).add_(g)
        update = newton_schulz(g + momentum * m, dtype) * math.sqrt(max(1, rows / cols))
    W.mul_(1 - lr * weight_decay)
    if g is not None:
        W.sub_(lr * update.to(W.dtype))
