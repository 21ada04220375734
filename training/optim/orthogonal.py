"""Newton-Schulz orthogonalisation: push all singular values of a matrix towards 1.

Five steps of the odd quintic ``X ← aX + (bA + cA²)X``, ``A = XXᵀ``, on a whole stack of equal matrices at once; a tall
matrix is transposed first, so ``A`` is the smaller square.

Source: Keller Jordan, Muon (2024); SPEC-11L 2.3.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

# Quintic coefficients of Jordan's Muon, tuned for the steepest slope at 0.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5
# Keeps a zero matrix at zero.
NORM_EPS = 1e-7


def orthogonalize(stack: Tensor, dtype: torch.dtype) -> Tensor:
    """Orthogonalise each matrix of ``stack`` (..., rows, cols), computing in ``dtype``; the result has that type.

    Each product takes its sum along and is rounded once. Summed apart, every step would round three times: in bfloat16
    that is twice the error on a random matrix (tests/training/test_optimizers.py).
    """
    X = stack.to(dtype).reshape(-1, *stack.shape[-2:])
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + NORM_EPS)
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT
    for _ in range(STEPS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), X, beta=A)
    return (X.mT if tall else X).reshape(stack.shape)


def orthogonalize_shared(stacks: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Orthogonalise stacks (n, rows, cols), each process a share of every stack; all get all of the result.

    The gathering of one stack overlaps the products of the next.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        return [orthogonalize(stack, dtype) for stack in stacks]
    results, pending = [], []
    for stack in stacks:
        share = -(-len(stack) // world)
        padded = torch.cat((stack, stack.new_zeros(share * world - len(stack), *stack.shape[1:])))
        own = orthogonalize(padded[dist.get_rank() * share :][:share], dtype).contiguous()
        gathered = own.new_empty(share * world, *own.shape[1:])
        pending.append(dist.all_gather_into_tensor(gathered, own, async_op=True))
        results.append(gathered[: len(stack)])
    for work in pending:
        work.wait()
    return results
