"""How many bytes of text a token stands for.

BPB divides nats by the bytes of the text that the scored tokens spell. A token's bytes depend on the token
before it: SentencePiece writes the blank as a prefix of the next piece, and a blank behind a document boundary
is the tokenizer's, not the text's.

``V`` vocabulary, ``N`` tokens. Source: the challenge's ``train_gpt.py``; LEGALITY rule C8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ByteTable:
    """Bytes of every vocabulary entry.

    base_bytes: int16 (V,), UTF-8 bytes of the piece without its leading blank; 0 for control pieces.
    has_leading_space: bool (V,), the piece begins with the blank mark U+2581.
    is_boundary: bool (V,), control, unknown and unused pieces: a blank right behind one is not text.
    """

    base_bytes: Tensor
    has_leading_space: Tensor
    is_boundary: Tensor

    def count(self, previous: Tensor, target: Tensor) -> Tensor:
        """Count the bytes of each target token, given the token before it.

        previous, target: int64 of one shape; returns int64 of that shape, in bytes.
        """
        blank = self.has_leading_space[target] & ~self.is_boundary[previous]
        return self.base_bytes[target].to(torch.int64) + blank.to(torch.int64)

    def of_targets(self, ids: Tensor) -> Tensor:
        """Count the bytes of every target of a stream: int64 (N + 1,) to int64 (N,), in bytes."""
        return self.count(ids[:-1], ids[1:])
