"""The coprime-stride loader of PR 1184: every window and every token of twelve calls, on one process and on two."""

import pytest
import torch
from safetensors.torch import load_file

from pgolf.corpus.shards import open_split
from training.batches import TrainTokens
from training.config import TrainingConfig
from training.coprime import CoprimeBatches

# The fixture was made with this relative path, and the generator is seeded by the paths of the shards.
PLACE = "shards/fineweb_train_{:06d}.bin"
SEQUENCES, LENGTH, CALLS = 8, 16, 12


@pytest.mark.parametrize("processes", [1, 2])
def test_coprime_batches_are_the_references(golden_11l, processes):
    golden = load_file(golden_11l / "loader_coprime.safetensors")
    shards = open_split(golden_11l / "shards", "train")
    tokens = TrainTokens(shards, [PLACE.format(number) for number in range(len(shards))])
    config = TrainingConfig(sequence_length=LENGTH, span_sequences=SEQUENCES, spans_per_step=processes)
    for rank in range(processes):
        batches = CoprimeBatches(tokens, config, rank, processes)
        windows = torch.tensor([batches.draw_call() for _ in range(CALLS)])
        assert torch.equal(windows.int(), golden[f"coprime.w{processes}.windows"].int())
        batches = CoprimeBatches(tokens, config, rank, processes)
        for expected in golden[f"coprime.w{processes}.rank{rank}.x"]:
            inputs, targets = batches.next_step()
            assert torch.equal(inputs.int(), expected.int())
            assert torch.equal(targets[:, :-1], inputs[:, 1:])


def test_the_order_depends_on_the_names(golden_11l):
    shards = open_split(golden_11l / "shards", "train")
    config = TrainingConfig(sequence_length=LENGTH, span_sequences=SEQUENCES, spans_per_step=1)
    named = CoprimeBatches(TrainTokens(shards, [PLACE.format(number) for number in range(len(shards))]), config)
    assert named.draw_call() != CoprimeBatches(TrainTokens(shards), config).draw_call()
