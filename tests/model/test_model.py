"""The model as transformers and its users see it: configuration, inputs, loss, back-ends, tables, start."""

import pytest
import torch
from model.architectures import alive, apart
from transformers import AutoModel, AutoModelForCausalLM

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import ConfigError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM, PGolfModel

# Of the largest logit. The same sums in another order came to 5e-7 at most, over all comparisons and six seeds.
CLOSE = 1e-6


@pytest.fixture
def model(tiny_config):
    return alive(tiny_config)


@pytest.fixture
def tokens():
    return torch.randint(3, 320, (3, 24), generator=torch.Generator().manual_seed(1))


def changed(config, **fields):
    return PGolfConfig(**{**config.to_dict(), **fields})


LOOPED = dict(loop_start=1, loop_end=2, loop_passes=2, skip_gates=True, parallel_from=3, mlp_negative_slope=0.5)


MERGED = {**LOOPED, "lanes": "merged", "lanes_from": 3}
ROUTED = {**LOOPED, "lanes": "routed", "lanes_from": 2, "loop_end": 1, "share_last_skip": True, "embedding_size": 20}


@pytest.fixture(params=[{}, LOOPED, MERGED, ROUTED], ids=["11-layer", "looped", "merged", "routed"])
def either(request, tiny_config):
    """A model of every kind."""
    return alive(changed(tiny_config, **request.param))


@pytest.mark.parametrize(
    ("key", "near"),
    [("hiden_size", "hidden_size"), ("xsa_layer", "xsa_layers"), ("loop_pases", "loop_passes"), ("zzz", None)],
)
def test_an_unknown_key_suggests_the_nearest(key, near):
    hint = f"did you mean '{near}'" if near else "see PGolfConfig"
    with pytest.raises(ConfigError, match=f"unknown configuration key '{key}'; {hint}"):
        PGolfConfig(**{key: 1})


def test_a_complete_file_may_carry_keys_of_other_tools(tiny_config, tmp_path):
    tiny_config.note = "set by another tool"
    tiny_config.save_pretrained(tmp_path)
    assert PGolfConfig.from_pretrained(tmp_path).note == "set by another tool"
    assert PGolfConfig.from_pretrained(tmp_path, num_blocks=6).num_blocks == 6
    del tiny_config.note
    tiny_config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"rotary_dims"', '"rotary_dim"'))
    with pytest.raises(ConfigError, match="'rotary_dim'; did you mean 'rotary_dims'"):
        PGolfConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (dict(hidden_size=33), "hidden_size 33 must be a multiple of num_attention_heads 4"),
        (dict(num_key_value_heads=3), "num_attention_heads 4 must be a multiple of num_key_value_heads"),
        (dict(rotary_dims=3), "rotary_dims must be even and at most head_dim 8, found 3"),
        (dict(rotary_dims=10), "found 10"),
        (dict(rotary_dims=-2), "found -2"),
        (dict(num_blocks=0, xsa_layers=[], value_embed_layers=[]), "num_blocks must be at least 1"),
        (dict(xsa_layers=[2, 4]), r"xsa_layers names \[4\], but blocks are 0 to 3"),
        (dict(value_embed_layers=[-1]), r"value_embed_layers names \[-1\]"),
        (dict(loop_passes=-1), "loop_passes must be at least 0"),
        (dict(loop_passes=1, loop_start=3, loop_end=2), "loop_start 3 and loop_end 2 must lie in order"),
        (dict(loop_passes=1, loop_start=1, loop_end=4), "inside 0 to 3"),
        (dict(lanes="merged"), "lanes_from must lie behind the loop and in the second half, 2 to 3, found None"),
        (dict(lanes_from=3), "lanes must be one of .* found None"),
        (dict(lanes="mixed", lanes_from=3), r"lanes must be one of \('merged', 'routed'\), found 'mixed'"),
        (dict(lanes="merged", lanes_from=1), "second half, 2 to 3, found 1"),
        (dict(lanes="merged", lanes_from=2, loop_passes=1, loop_start=1, loop_end=2), "behind the loop"),
        (dict(loop_passes=1, loop_start=-1, loop_end=2), "loop_start -1"),
        (dict(logit_softcap=0.0), "logit_softcap must be positive"),
        (dict(bigram_buckets=1), "bigram_buckets must be 0"),
    ],
)
def test_a_contradiction_is_refused(tiny_config, fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        changed(tiny_config, **fields)


@pytest.fixture
def made(model, monkeypatch):
    """The shapes of all logits that are made."""
    shapes, genuine = [], torch.nn.functional.linear

    def linear(x, weight, *rest):
        if weight.shape[0] == model.config.vocab_size:
            shapes.append(tuple(x.shape[:-1]))
        return genuine(x, weight, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    return shapes


@pytest.mark.parametrize("kept", [1, 5, 24, torch.tensor([0, 3, 23])])
def test_no_more_logits_are_made_than_kept(model, tokens, made, kept):
    every = model(tokens).logits
    some = model(tokens, logits_to_keep=kept).logits
    places = kept if isinstance(kept, torch.Tensor) else torch.arange(24 - kept, 24)
    assert made == [(3, 24), (3, len(places))]
    assert apart(some, every[:, places]) < CLOSE


def test_generation_makes_one_row_of_logits_a_step(model, tokens, made):
    model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert made == [(3, 1)] * 4


def test_shifted_and_unshifted_labels_agree(model, tokens):
    masked = tokens.clone()
    masked[:, 10:] = -100
    for labels, targets in ((tokens, 23), (masked, 9)):
        inside = model(tokens, labels=labels).loss
        outside = model(tokens[:, :-1], shift_labels=labels[:, 1:].contiguous()).loss
        scored = model(tokens).logits[:, :targets].flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(scored, tokens[:, 1 : targets + 1].flatten()).item()
        # A float32 mean of 69 numbers near 6.
        assert inside.item() == pytest.approx(expected, abs=2e-6)
        assert outside.item() == pytest.approx(expected, abs=2e-6)


def test_embeddings_alone_are_refused(model, tokens):
    embeds = model.get_input_embeddings()(tokens)
    with pytest.raises(ValueError, match="this pgolf model needs input_ids: its hashed bigram and value embeddings"):
        model(inputs_embeds=embeds)
    for arguments in (dict(input_ids=tokens, inputs_embeds=embeds), {}):
        with pytest.raises(ValueError, match="needs input_ids, or inputs_embeds in their place"):
            model(**arguments)


@pytest.mark.parametrize(("size", "mean"), [(340, True), (340, False), (300, True)])
def test_resizing_resizes_every_table_read_by_token(model, tokens, size, mean, tmp_path):
    kept = tokens % 300
    before = model(kept).logits
    model.resize_token_embeddings(size, mean_resizing=mean)
    known = min(size, 320)
    assert apart(model(kept).logits[..., :known], before[..., :known]) < CLOSE
    every = torch.arange(size)[None]
    assert model(every).logits.shape == (1, size, size)
    # New rows look like the old ones: a token that no text has shown is no more probable than others.
    table = model.model.embed_tokens.weight
    assert table[known:].abs().sum() <= 3 * table[:known].abs().mean() * table[known:].numel()
    model.save_pretrained(tmp_path)
    assert torch.equal(PGolfForCausalLM.from_pretrained(tmp_path)(every).logits, model(every).logits)


def test_back_ends_agree(either, tokens):
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0
    real = mask.bool()
    for attention_mask in (None, mask):
        logits = {}
        for backend in ("eager", "sdpa"):
            either.set_attn_implementation(backend)
            logits[backend] = either(tokens, attention_mask=attention_mask).logits[real]
            assert either.config._attn_implementation == backend
        assert apart(logits["eager"], logits["sdpa"]) < CLOSE


def test_no_position_sees_the_future(either, tokens):
    other = tokens.clone()
    other[:, 12] = (tokens[:, 12] + 1) % 320
    one, two = either(tokens).logits, either(other).logits
    assert apart(one[:, :12], two[:, :12]) < CLOSE
    assert apart(one[:, 12], two[:, 12]) > 0.1 and apart(one[:, 13], two[:, 13]) > 0.1


def gradients(model, tokens):
    model.train()
    model.zero_grad()
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(either, tokens, reentrant):
    plain = gradients(either, tokens)
    assert all(g.abs().max() > 0 for g in plain.values()), "a feature is dead"
    visits = []
    for block in either.model.layers:
        block.self_attn.register_forward_hook(lambda module, *rest: visits.append(module))
    either.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    saved = gradients(either, tokens)
    assert len(visits) == 2 * len(either.config.order), "nothing was computed again"
    for name, gradient in plain.items():
        # The re-entrant kind adds the gradients of what several blocks read in another order.
        assert apart(saved[name], gradient) <= (CLOSE if reentrant else 0), name


def test_autocast(either, tokens):
    exact = either(tokens, labels=tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = either(tokens, labels=tokens)
    assert rounded.logits.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: half a percent of logits up to 5, averaged over 69 targets.
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), abs=0.02)
    assert all(p.dtype == torch.float32 for p in either.parameters())


def test_loading_twice_gives_equal_logits(either, tokens, tmp_path):
    either.save_pretrained(tmp_path)
    expected = either(tokens).logits
    for _ in range(2):
        loaded = PGolfForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(loaded(tokens).logits, expected)
        del loaded  # whatever it leaves in memory must not reach the next
    stranger = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(stranger(tokens).logits, expected)
    for base in (PGolfModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path, trust_remote_code=True)):
        assert torch.equal(base(tokens)[0], either.model(tokens)[0])


@pytest.fixture(scope="module")
def fresh():
    """The real model's sizes with two blocks."""
    torch.manual_seed(0)
    return PGolfForCausalLM(PGolfConfig(num_blocks=2, xsa_layers=[1], value_embed_layers=[1]))


def test_initial_tables_and_gains(fresh):
    state = dict(fresh.model.named_parameters())
    deviations = {"embed_tokens": 0.005, "value_embed.embed": 0.01, "bigram.proj": 0.00942, "value_embed.proj": 0.01333}
    for name, deviation in deviations.items():
        # The sample deviation of so many elements is within 1 % of the true one; the numbers are those of SPEC-11L 1.2.
        assert state.pop(f"{name}.weight").std().item() == pytest.approx(deviation, rel=0.01), name
    constants = {"bigram.embed.weight": 0, "bigram.scale": 0.05, "value_embed.scale": 0.1, "value_embed_scales": 1}
    constants |= {"skips.weights": 1, "smear.gate": 0}
    for block in ("layers.0", "layers.1"):
        constants |= {f"{block}.attn_scale": 1, f"{block}.mlp_scale": 1, f"{block}.self_attn.q_gain": 1.5}
        constants |= {f"{block}.self_attn.o_proj.weight": 0, f"{block}.mlp.down_proj.weight": 0}
        assert (state.pop(f"{block}.resid_mix") == torch.tensor([[1.0], [0.0]])).all()
    for name, value in constants.items():
        assert (state.pop(name) == value).all(), name
    left = {name.split(".", 2)[2] for name in state}
    assert left == {f"self_attn.{m}_proj.weight" for m in "qkv"} | {"mlp.up_proj.weight"}


def test_initial_matrices_are_orthogonal(fresh):
    for block in fresh.model.layers:
        for layer in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj, block.mlp.up_proj):
            short = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
            torch.testing.assert_close(short @ short.T, torch.eye(len(short)), atol=1e-5, rtol=0)


def test_initial_loss_is_that_of_a_guess(fresh):
    tokens = torch.randint(0, 1024, (2, 64), generator=torch.Generator().manual_seed(0))
    # Logits of ±0.1 cost half of their variance: 0.005² · 512 / 2.
    assert fresh(tokens, labels=tokens).loss.item() == pytest.approx(6.931, abs=0.05)


def test_an_untied_head_starts_at_zero(tiny_config):
    model = PGolfForCausalLM(changed(tiny_config, tie_word_embeddings=False))
    assert (model.lm_head.weight == 0).all()
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(1.0, rel=0.05)


def test_a_model_without_stream_weights_has_a_small_table(tiny_config):
    """One block, no value embedding: the model itself owns no parameter then, only its table does."""
    model = PGolfForCausalLM(changed(tiny_config, num_blocks=1, xsa_layers=[], value_embed_layers=[]))
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.005, rel=0.05)
