"""A record of the challenge from synthetic figures: script, logs, entry and card; and the verdicts on it."""

import json
import math

from pgolf.audit.folders import audit_folder
from pgolf.audit.policy import judge, load_policy

TOKENS_PER_BYTE = 0.410521
SCRIPT = "import os\n\nprint(os.environ.get('VOCAB_SIZE', 1024))\n"
SMI = "|   {index}  NVIDIA H100 80GB HBM3          On  |   00000000:19:00.0 Off |                    0 |\n"


def log_text(seed, bits, **changes):
    """A log of the challenge; ``changes`` replace its figures, None leaves the line out."""
    said = {
        "train_ms": 599_900,
        "eval_ms": 73_133,
        "model": 15_000_000,
        "code": len(SCRIPT),
        "total": 15_000_000 + len(SCRIPT),
        "targets": 62_021_632,
        "ratio": TOKENS_PER_BYTE,
        "gpus": 8,
        "shards": 80,
    } | changes
    loss = bits * math.log(2) / said["ratio"]
    lines = [
        "val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=./data/tokenizers/fineweb_1024_bpe.model",
        f"train_loader:dataset:fineweb10B_sp1024 train_shards:{said['shards']}",
        f"val_loader:shards pattern=./data/fineweb_val_*.bin tokens:{said['targets']}" if said["targets"] else "",
        "train_batch_tokens:524288 train_seq_len:2048 iterations:20000",
        f"seed:{seed}" if seed is not None else "",
        "step:4000/20000 val_loss:2.0601 val_bpb:1.2201 train_time:338000ms step_avg:84.5ms",
        f"stopping_early: wallclock_cap train_time:{said['train_ms']}ms step:7096/20000" if said["train_ms"] else "",
        *said.get("before", []),
        "Serialized model: 106178569 bytes",
        f"Code size: {said['code']} bytes" if said["code"] else "",
        f"Serialized model int6+zstd: {said['model']} bytes" if said["model"] else "",
        f"Total submission size int6+zstd: {said['total']} bytes" if said["total"] else "",
        f"final_int6_roundtrip_exact val_loss:{loss + 0.04:.8f} val_bpb:{bits + 0.0237:.8f}",
        f"final_int6_sliding_window val_loss:{loss:.4f} val_bpb:{bits:.4f} stride:64 eval_time:{said['eval_ms']}ms"
        if said["eval_ms"]
        else "",
        f"final_int6_sliding_window_exact val_loss:{loss:.8f} val_bpb:{bits:.8f}",
        *said.get("after", []),
    ]
    smi = "".join(SMI.format(index=index) for index in range(said["gpus"]))
    return "    log0('val_loss:1.0 val_bpb:1.0')\n" + smi + "\n".join(line for line in lines if line) + "\n"


BITS = {1337: 1.12, 42: 1.121, 2024: 1.1225}
MEAN = sum(BITS.values()) / 3


def write_folder(folder, script=SCRIPT, entry=None, card=None, **changes):
    folder.mkdir()
    (folder / "train_gpt.py").write_text(script)
    for seed, bits in BITS.items():
        (folder / f"train_seed{seed}.log").write_text(log_text(seed, bits, **changes))
    total = 15_000_000 + len(SCRIPT)
    claims = {"val_bpb": round(MEAN, 5), "val_loss": round(MEAN * math.log(2) / TOKENS_PER_BYTE, 5)}
    (folder / "submission.json").write_text(json.dumps(claims | {"bytes_total": total} | (entry or {})))
    (folder / "README.md").write_text(card or f"Mean of three seeds: {MEAN:.4f} BPB in {total:,} bytes.\n")
    return folder


def verdicts(folder, policy="strict"):
    facts, hardware = audit_folder(folder)
    return {(v.fact.rule, v.fact.name): v.verdict for v in judge(facts, load_policy(policy), hardware)}
