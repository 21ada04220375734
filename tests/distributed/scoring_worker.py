"""Run by torchrun: score one fixed model with several batch sizes; the first process writes every target's nats."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.config import EvaluationConfig
from evaluation.scorer import score
from evaluation.windows import ValidationTokens
from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.processes import leave_process_group

BATCHES = (1, 7, 32)


def main(out: Path) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_blocks": 4, "rotary_dims": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "xsa_layers": [3], "value_embed_layers": [3]}
    model = PGolfForCausalLM(PGolfConfig(**sizes, **heads, rotary_length=64, bigram_buckets=61, bigram_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():  # every feature alive: output matrices start at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = ValidationTokens(torch.randint(0, 320, (1501,)))
    nats = {}
    for batch in BATCHES:
        config = EvaluationConfig(64, 8, batch_windows=batch, compile=False, precision="fp32")
        nats[str(batch)] = score(model, tokens, config, accelerator).nats
    if accelerator.is_main_process:
        save_file(nats, out / f"nats-{accelerator.num_processes}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_process_group()
