"""Two lanes: a residual stream as a pair, of which attention reads the first and the feed-forward branch the second.

From one block of the decoder on the stream is a tensor (2, B, T, D) that starts as twice the single stream and is one
again before the final norm. ``merged`` lanes (PR 1477) keep apart what the branches write and are weighed by one
learnt scalar at the end; ``routed`` lanes (PR 1204) learn how much of either branch goes to either lane, and end as
their mean. Source: SPEC-8192 1.9.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Block
from .configuration_pgolf import PGolfConfig
from .skips import Skips


class MergedBlock(Block):
    """A block whose attention writes to the first lane and whose feed-forward branch writes to the second."""

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        value_embedding: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        queries: slice | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the lanes behind the block, (2, B, T, D); arguments as a block's, ``x`` (2, B, T, D)."""
        u, second = self.mixed(x[0], x0), x[1]
        attended = self.attend(u, value_embedding, rotary, queries, **kwargs)
        if queries is not None:
            u, second = u[:, queries], second[:, queries]
        return torch.stack((u + attended, second + self.feed(second)))


class RoutedBlock(Block):
    """A block that writes either branch to both lanes, by learnt weights."""

    def __init__(self, config: PGolfConfig, layer: int) -> None:
        super().__init__(config, layer)
        # By branch, attention first: how much of the lanes is kept, and how much of the branch each lane gets.
        self.lane_retention = nn.Parameter(torch.empty(2))
        self.lane_routing = nn.Parameter(torch.empty(2, 2))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        value_embedding: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        queries: slice | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the lanes behind the block, (2, B, T, D); arguments as a block's, ``x`` (2, B, T, D)."""
        attended = self.attend(self.mixed(x[0], x0), value_embedding, rotary, queries, **kwargs)
        if queries is not None:
            x, x0 = x[:, :, queries], x0[:, queries]
        x = self._routed(x, attended, 0)
        return self._routed(x, self.feed(self.mixed(x[1], x0)), 1)

    def _routed(self, x: Tensor, written: Tensor, branch: int) -> Tensor:
        routing = self.lane_routing[branch].to(x.dtype)[:, None, None, None]
        return self.lane_retention[branch].to(x.dtype) * x + routing * written


class MergedLanes(nn.Module):
    """What happens to merged lanes outside the blocks."""

    block = MergedBlock

    def __init__(self) -> None:
        super().__init__()
        self.merge = nn.Parameter(torch.empty(()))

    def blend(self, skips: Skips, x: Tensor, skip: Tensor, row: int) -> Tensor:
        """Blend ``skip`` (B, T, D) into the first lane of ``x`` (2, B, T, D)."""
        return torch.stack((skips(x[0], skip, row), x[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the lanes (2, B, T, D) into one stream (B, T, D)."""
        share = self.merge.to(x.dtype)
        return share * x[0] + (1 - share) * x[1]


class RoutedLanes(nn.Module):
    """What happens to routed lanes outside the blocks."""

    block = RoutedBlock

    def blend(self, skips: Skips, x: Tensor, skip: Tensor, row: int) -> Tensor:
        """Blend ``skip`` (B, T, D) into both lanes of ``x`` (2, B, T, D)."""
        blended: Tensor = skips(x, skip, row)
        return blended

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean (B, T, D) of the lanes (2, B, T, D)."""
        return (x[0] + x[1]) / 2


LANES: dict[str, type[MergedLanes] | type[RoutedLanes]] = {"merged": MergedLanes, "routed": RoutedLanes}


def blocks_of(config: PGolfConfig) -> list[Block]:
    """Build the blocks of a model, those of its lanes from the block on where lanes open."""
    lanes_from = config.num_blocks if config.lanes_from is None else config.lanes_from
    late = LANES[config.lanes].block if config.lanes else Block
    return [(Block if layer < lanes_from else late)(config, layer) for layer in range(config.num_blocks)]
