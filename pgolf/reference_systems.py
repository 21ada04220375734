"""The reference systems: which architecture each published script builds from which settings.

Settings carry the scripts' own lower-case names; a system is its published run's values. Two lines: the 11-layer one
(PR 414 to 1364) and the SP8192 one (PR 1394 to 1493), plus PR 1423, whose script is of the first kind at the sizes of
the second, and PR 1285, the second line's forerunner. Sources: SPEC-11L 0 and 1; SPEC-8192 1.1, 1.8 and 1.9.
"""

from __future__ import annotations

import difflib
from typing import Any

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import RecipeError

Settings = dict[str, Any]

# Trained length of the rotary base that PR 414's line has wired in (SPEC-11L 1.7).
FIXED_ROTARY_LENGTH = 1024
# A block index that no model reaches: no parallel residual.
NEVER = 1_000_000

PR414: Settings = {
    "vocab_size": 1024, "num_layers": 11, "model_dim": 512, "num_heads": 8, "num_kv_heads": 4, "mlp_mult": 3.0,
    "tie_embeddings": True, "tied_embed_init_std": 0.005, "logit_softcap": 30.0, "rope_base": 10000.0,
    "qk_gain_init": 1.5, "bigram_vocab_size": 2048, "bigram_dim": 128, "xsa_last_n": 4, "rope_dims": 16,
    "ln_scale": True, "ve_enabled": True, "ve_dim": 128, "ve_layers": "9,10", "skip_gates_enabled": False,
    "embedding_dim": None, "num_loops": 0, "loop_start": 0, "loop_end": -1, "parallel_residual_start": NEVER,
    "train_seq_len": 2048, "recur_layers_str": "", "parallel_residual": False, "parallel_start_layer": NEVER,
    # Switches that no published run turned on, and that this model does not have.
    "dtg": False, "mtp_num_heads": 0, "mtp_loss_weight": 0.2, "gated_attention": False, "value_residual": False,
    "repeat_untie_mlp_layers": "", "disable_layer0_attn": False,
}  # fmt: skip
PR549: Settings = PR414 | {"bigram_vocab_size": 1536}
PR1394: Settings = PR414 | {
    "vocab_size": 8192, "mlp_mult": 4.0, "qk_gain_init": 4.0, "bigram_vocab_size": 0, "xsa_last_n": 11,
    "ve_enabled": False, "skip_gates_enabled": True, "num_loops": 2, "loop_start": 4, "loop_end": 5,
}  # fmt: skip
SYSTEMS: dict[str, Settings] = {
    "414": PR414,
    "445": PR414,
    "691": PR414,
    "549": PR549,
    "1019": PR549 | {"bigram_vocab_size": 3072, "bigram_dim": 112, "xsa_last_n": 11},
    "1364": PR549 | {"bigram_vocab_size": 2048, "xsa_last_n": 11},
    "fork": PR549 | {"bigram_vocab_size": 2048, "xsa_last_n": 11, "qk_gain_init": 5.0},
    "1394": PR1394,
    "1413": PR1394 | {"qk_gain_init": 5.0},
    "1493": PR1394 | {"qk_gain_init": 5.25, "loop_start": 3, "parallel_residual_start": 7},
    "1477": PR1394 | {"parallel_residual": True, "parallel_start_layer": 7},
    "1285": PR1394
    | {
        "vocab_size": 4096,
        "num_loops": 0,
        "ve_enabled": True,
        "recur_layers_str": "4,5",
        "parallel_start_layer": 7,
    },
    "1423": PR1394 | {"qk_gain_init": 5.0, "num_loops": 0, "loop_start": 0, "loop_end": -1},
}
# relu² until PR 493, the leaky form after it; small projections scaled at their start until PR 549.
RELU_SYSTEMS = ("414", "445", "691")
# Scripts whose rotary base follows the training length, and that have no smear gate.
LOOPED_SYSTEMS = ("1394", "1413", "1493", "1477", "1285")
# How the two lanes of a script meet that has them.
LANES = {"1477": "merged", "1285": "routed"}
UNSUPPORTED = (
    "dtg", "mtp_num_heads", "gated_attention", "value_residual", "repeat_untie_mlp_layers", "disable_layer0_attn",
)  # fmt: skip

# Settings of the scripts that shape no weight: accepted, so that a whole dump can be given.
NOT_ARCHITECTURE = """
    adam_eps adam_wd beta1 beta2 data_path ema_decay ema_enabled embed_lr eval_seq_len eval_stride
    grad_clip_norm head_lr iterations late_qat_threshold lawa_enabled lawa_freq lawa_k matrix_lr
    max_wallclock_seconds muon_backend_steps muon_beta2 muon_momentum muon_momentum_warmup_start
    enable_looping_at min_lr muon_momentum_warmup_steps muon_wd qat_enabled run_id scalar_lr seed swa_enabled
    swa_every tied_embed_lr
    tokenizer_path train_batch_tokens train_files train_log_every ttt_batch_seqs ttt_burst_enabled
    ttt_burst_epochs ttt_burst_lr_factor ttt_burst_steps ttt_burst_trigger ttt_chunk_tokens ttt_enabled
    ttt_epochs ttt_freeze_blocks ttt_grad_clip ttt_lr ttt_momentum val_batch_size val_files val_loss_every
    warmdown_frac warmdown_iters warmup_steps gptq_calib_batches gptq_block_size target_mb compressor
    world_size rank grad_accum_steps looping_active parallel_start_layer_is_physical recur_start_step repeat_untie_mlp
"""


def configuration(system: str, settings: Settings) -> PGolfConfig:
    """Translate the settings of a reference script to a model configuration; raises RecipeError on unknown ones."""
    if system not in SYSTEMS:
        raise RecipeError(f"system {system!r} is not one of {', '.join(SYSTEMS)}")
    refuse_unknown(settings, system)
    s = SYSTEMS[system] | {name: value for name, value in settings.items() if name in PR414}
    refuse_unsupported(s)
    layers = s["num_layers"]
    ve_layers = s["ve_layers"] if s["ve_enabled"] else ""
    start, end, passes = loop_of(system, s)
    lanes_from = s["parallel_start_layer"] if s["parallel_residual"] and system in LANES else None
    return PGolfConfig(
        vocab_size=s["vocab_size"],
        hidden_size=s["model_dim"],
        intermediate_size=int(s["mlp_mult"] * s["model_dim"]),
        num_blocks=layers,
        num_attention_heads=s["num_heads"],
        num_key_value_heads=s["num_kv_heads"],
        tie_word_embeddings=s["tie_embeddings"],
        logit_softcap=s["logit_softcap"],
        mlp_negative_slope=0.0 if system in RELU_SYSTEMS else 0.5,
        ln_scale=s["ln_scale"],
        parallel_from=s["parallel_residual_start"],
        rotary_base=s["rope_base"],
        rotary_dims=s["rope_dims"],
        rotary_trained_length=s["train_seq_len"] if system in LOOPED_SYSTEMS else FIXED_ROTARY_LENGTH,
        rotary_length=None,
        q_gain_init=s["qk_gain_init"],
        xsa_layers=list(range(max(0, layers - s["xsa_last_n"]), layers)),
        bigram_buckets=s["bigram_vocab_size"],
        bigram_dim=s["bigram_dim"],
        smear_gate=system not in LOOPED_SYSTEMS,
        value_embed_layers=[int(layer) for layer in ve_layers.split(",") if layer],
        value_embed_dim=s["ve_dim"],
        skip_gates=s["skip_gates_enabled"],
        share_last_skip=bool(s["recur_layers_str"]),
        loop_start=start,
        loop_end=end,
        loop_passes=passes,
        lanes=LANES[system] if lanes_from is not None else None,
        lanes_from=lanes_from,
        embedding_size=s["embedding_dim"] if s["embedding_dim"] != s["model_dim"] else None,
        embed_init_std=s["tied_embed_init_std"],
        table_proj_init_gain=(2 * layers) ** -0.5 if system in RELU_SYSTEMS else 1.0,
    )


def loop_of(system: str, s: Settings) -> tuple[int, int, int]:
    """Return the first and last block of the loop and its extra passes; raises RecipeError on a loop with gaps.

    PR 1204's line lists the blocks, which it repeats once; PR 1394's gives the ends and the number of passes.
    """
    if s["recur_layers_str"]:
        blocks = [int(block) for block in s["recur_layers_str"].split(",")]
        if blocks != list(range(blocks[0], blocks[-1] + 1)):
            raise RecipeError(f"recur_layers_str {s['recur_layers_str']!r} skips blocks; this model loops a segment")
        return blocks[0], blocks[-1], 1
    if system in LOOPED_SYSTEMS and s["num_loops"] > 0:
        return s["loop_start"], s["loop_end"], s["num_loops"]
    return 0, -1, 0


def refuse_unknown(settings: Settings, system: str) -> None:
    """Raise RecipeError on a setting that no reference script has, naming the nearest."""
    known = [*PR414, *NOT_ARCHITECTURE.split()]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"unknown setting {name!r} of system {system}{hint}")


def refuse_unsupported(s: Settings) -> None:
    """Raise RecipeError where the settings ask for what this model does not have."""
    on = [name for name in UNSUPPORTED if s[name]]
    if on:
        raise RecipeError(f"{', '.join(on)} is switched on; no published run uses it and this model does not have it")
