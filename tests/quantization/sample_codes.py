"""Codes for the tests of codecs: of clipped Gaussian rows, of given numbers, and noise."""

import torch

from modeling_pgolf.grid import GridTensor, largest_code

LEVEL = 3


def gaussian_codes(rows, columns, k, bits, spread=None):
    """Codes of Gaussian rows that are clipped at k standard deviations."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator)
    weight = weight if spread is None else weight * spread
    c = largest_code(bits)
    scale = (k * weight.std(-1) / c).half()
    codes = (weight / scale.float()[:, None]).round().clamp(-c, c).to(torch.int8)
    return GridTensor(codes, scale, bits)


def grid(codes, bits=8):
    codes = torch.as_tensor(codes, dtype=torch.int8)
    return GridTensor(codes, torch.ones(codes.shape[:1]).half(), bits)


def noise(*shape):
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int8)
