"""The layer program: in which order blocks are visited, and which visits are joined by a U-Net skip.

The list of visits is cut in two halves. Every visit of the first half leaves its output on a stack; visit ``j`` of
the second half takes one off and blends it into its input through skip row ``j``. A looped configuration repeats a
segment of blocks, and the halves are those of the *repeated* list. From a block of the second half on the stream
may be two lanes.

Source: U-Net skips, the challenge's baseline; depth recurrence, PR 1204 and PR 1394; lanes, PR 1204 and PR 1477;
SPEC-8192 1.4, 1.9.
"""

from typing import NamedTuple


class Visit(NamedTuple):
    """One execution of a block.

    block: index of the weights used.
    keep: the output is kept for a later skip.
    skip: row of the skip weights to blend in before the block, or None.
    opens: after the skip the stream becomes two lanes, and stays so.
    """

    block: int
    keep: bool
    skip: int | None
    opens: bool = False


def visiting_order(blocks: int, loop_start: int, loop_end: int, loop_passes: int) -> list[int]:
    """List the blocks in visiting order: ``loop_start..loop_end`` is run ``1 + loop_passes`` times."""
    segment = list(range(loop_start, loop_end + 1))
    if loop_passes == 0 or not segment:
        return list(range(blocks))
    return [*range(loop_start), *segment * (loop_passes + 1), *range(loop_end + 1, blocks)]


def layer_program(order: list[int], rows: int, lanes_from: int | None = None) -> tuple[Visit, ...]:
    """Turn a visiting order into visits with their skips.

    The first ``len(order) // 2`` visits are the encoder; decoder visit ``j`` takes skip ``j`` while there is one.
    rows: of skip weights; where there are fewer rows than skips, the last skips share the last row (PR 1285).
    lanes_from: the block before which two lanes open, if any.
    """
    encoder = len(order) // 2
    skips = skip_rows(order)
    visits = []
    for place, block in enumerate(order):
        skip = place - encoder
        row = min(skip, rows - 1) if 0 <= skip < skips else None
        visits.append(Visit(block, keep=skip < 0, skip=row, opens=block == lanes_from))
    return tuple(visits)


def skip_rows(order: list[int]) -> int:
    """Return how many skip rows a visiting order needs: ``min(encoder, decoder)``."""
    return min(len(order) // 2, len(order) - len(order) // 2)
