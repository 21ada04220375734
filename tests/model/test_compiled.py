"""The compiled training graph: a causal kernel without a written-out mask, and no second compilation inside a run."""

import numpy as np
import torch
from accelerate import Accelerator

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from training.batches import TrainTokens
from training.config import QatConfig, TrainingConfig
from training.next_token_loss import NextTokenLoss
from training.telemetry import Telemetry
from training.trainer import Trainer


def attention_calls(config):
    """The keyword arguments of every attention call in the traced training graph."""
    calls = []

    def backend(module, inputs):
        calls.extend(n.kwargs for n in module.graph.nodes if "scaled_dot_product" in str(n.target))
        return module.forward

    model = PGolfForCausalLM(config)
    tokens = torch.randint(0, config.vocab_size, (2, 24))
    torch._dynamo.reset()
    torch.compile(NextTokenLoss(model), dynamic=False, fullgraph=True, backend=backend)(tokens, tokens)
    return calls


def test_training_graph_is_causal_without_a_mask(tiny_config):
    calls = attention_calls(tiny_config)
    assert len(calls) == tiny_config.num_hidden_layers
    assert all(call["attn_mask"] is None and call["is_causal"] for call in calls)


def test_nothing_is_compiled_after_the_warm_up(tiny_config, monkeypatch):
    compilations = []

    def backend(module, inputs):
        compilations.append(module)
        return module.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiler(f, backend=backend, **options))
    torch._dynamo.reset()
    config = TrainingConfig(
        iterations=6,
        seconds=None,
        sequence_length=16,
        span_sequences=4,
        spans_per_step=2,
        micro_batch_sequences=4,
        warmdown_steps=4,
        qat=QatConfig(below_scale=0.6, more_elements_than=0),
        precision="fp32",
    )
    tokens = TrainTokens([np.arange(5000).astype(np.uint16) % tiny_config.vocab_size])
    quiet = Telemetry(lambda event: None, 6, 1, False)
    trainer = Trainer(PGolfForCausalLM(tiny_config), tokens, config, Accelerator(cpu=True), quiet)
    trainer.warm_up()
    assert len(compilations) == 2, "one graph without rounding, one with it"
    while not trainer.finished():
        trainer.step()
        if trainer.steps == 2:
            with trainer.true_weights(), torch.inference_mode():
                trainer.model.eval()
                trainer.model(torch.zeros(1, 16, dtype=torch.int64), use_cache=False)
            trainer.model.train()
    assert trainer.qat.on
    assert len(compilations) == 2
