"""The loaders of the SP8192 line: coprime stride (PR 1218), shuffled sequences (PR 1394), sequential (PR 1423)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from training.batches import SequentialBatches, TrainTokens
from training.config import TrainingConfig
from training.coprime import CoprimeBatches
from training.shuffled import ShuffledBatches


def fixture(folder, name):
    return json.loads((folder / f"{name}.meta.json").read_text()), load_file(folder / f"{name}.safetensors")


def stored(golden, prefix, count, names=None):
    return TrainTokens([golden[f"{prefix}shard{i}"].numpy().astype("uint16") for i in range(count)], names)


def test_coprime_batches_are_the_references(golden_8192):
    meta, golden = fixture(golden_8192, "loader_coprime_1218")
    case = meta["cases"]["a"]
    processes, length = case["world_size"], case["seq_len"]
    tokens = stored(golden, "a/", len(case["shard_lengths"]), case["path_strings"])
    config = TrainingConfig(
        sequence_length=length,
        span_sequences=case["global_tokens"] // processes // length,
        spans_per_step=processes,
    )
    for rank in range(processes):
        windows, batches = (CoprimeBatches(tokens, config, rank, processes) for _ in range(2))
        for number in range(case["batches"]):
            assert windows.draw_call() == [tuple(pair) for pair in golden["a/global_windows"][number].tolist()]
            assert torch.equal(batches.next_step()[0].int(), golden[f"a/rank{rank}/batch{number}/x"])


@pytest.mark.parametrize("name", ["a", "tiny_shards"])
def test_shuffled_batches_are_the_references(golden_8192, name):
    meta, golden = fixture(golden_8192, "loader_shuffled")
    case = meta["cases"][name]
    processes, length = case["world_size"], case["seq_len"]
    config = TrainingConfig(
        sequence_length=length,
        span_sequences=case["global_tokens"] // processes // length,
        spans_per_step=processes,
    )
    for rank in range(processes):
        batches = ShuffledBatches(stored(golden, f"{name}/", len(case["shard_lengths"])), config, rank, processes)
        for number in range(case["batches"]):
            for part, found in zip("xy", batches.next_step(), strict=True):
                assert torch.equal(found.int(), golden[f"{name}/rank{rank}/batch{number}/{part}"]), (rank, number)


def test_sequential_batches_are_the_references(golden_8192):
    meta, golden = fixture(golden_8192, "loader_sequential_1423")
    processes, length = meta["world_size"], meta["seq_len"]
    tokens = stored(golden, "", len(meta["shard_lengths"]))
    config = TrainingConfig(
        sequence_length=length,
        span_sequences=meta["global_tokens"] // processes // length,
        spans_per_step=processes,
    )
    for rank in range(processes):
        batches = SequentialBatches(tokens, config, rank, processes)
        calls = sum(key.startswith(f"rank{rank}/") and key.endswith("/x") for key in golden)
        assert calls == 6
        for number in range(calls):
            for part, found in zip("xy", batches.next_step(), strict=True):
                assert torch.equal(found.int(), golden[f"rank{rank}/batch{number}/{part}"]), (rank, number)
