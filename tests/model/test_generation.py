"""Generation with a cache equals generation without one, token by token, for every published architecture.

The logits of every cached step are those of one forward pass over the whole text. The tiny models have the published
depth, so a looped one has a cache slot for each of its 15 or 17 visits.
"""

import functools

import pytest
import torch
from model.architectures import ARCHITECTURES, VOCABULARY, alive, apart, tiny
from transformers import CompileConfig, DynamicCache, StaticCache

from modeling_pgolf.errors import ConfigError

# Of the largest logit; all comparisons here came to 8e-7 at most. The issue asks for 1e-5 in logits, which are below 6.
CLOSE = 1e-6
NEW = 6
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


@functools.cache
def living(system):
    return alive(ARCHITECTURES[system])


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return living(request.param)


@pytest.fixture
def tokens():
    return torch.randint(3, VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(1))


def caches(config):
    return {"dynamic": DynamicCache(config=config), "static": StaticCache(config=config, max_cache_len=32)}


@torch.no_grad()
def in_pieces(model, tokens, cache, sizes):
    """The logits of a text that is fed in pieces."""
    pieces = tokens.split(sizes, dim=1)
    return torch.cat([model(piece, past_key_values=cache, use_cache=True).logits for piece in pieces], dim=1)


def test_the_systems_are_the_published_ones():
    assert {"414", "549", "1019", "1394", "1493", "1423"} <= set(ARCHITECTURES)
    depths = {name: config.num_hidden_layers for name, config in ARCHITECTURES.items()}
    assert (depths["414"], depths["1423"], depths["1394"], depths["1493"]) == (11, 11, 15, 17)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_every_cached_step_has_the_logits_of_a_full_forward(model, tokens, kind):
    cache = caches(model.config)[kind]
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
    stepwise = in_pieces(model, tokens, cache, [6, *[1] * 12, 3, 3])
    assert whole.abs().max() < 6
    for step in range(tokens.shape[1]):
        assert apart(stepwise[:, step], whole[:, step]) < CLOSE, step
    assert len(cache.layers) == len(model.config.order) == len(model.model.program)
    assert int(cache.get_seq_length()) == 24


def lookup_prompt(tokens):
    """A prompt that repeats itself, so that prompt lookup finds candidates."""
    return tokens[:1, :5].repeat(1, 3)


KINDS = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 3},
    "static beams": {"num_beams": 3, "cache_implementation": "static"},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_equals_that_without(model, tokens, kind):
    options = KINDS[kind]
    prompt = lookup_prompt(tokens) if kind == "lookup" else tokens[:, :9]
    lengths = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = model.generate(prompt, use_cache=True, **GREEDY, **options)
    hook.remove()
    searched = {"num_beams": options["num_beams"]} if "num_beams" in options else {}
    expected = model.generate(prompt, use_cache=False, **GREEDY, **searched)
    assert torch.equal(found, expected)
    assert found.shape[1] == prompt.shape[1] + NEW
    # Every token is read once, but what lookup guessed wrong: that left the cache again.
    assert (sum(lengths) > prompt.shape[1] + NEW - 1) == (kind == "lookup")


def left_padded(tokens):
    """The last 24, 9 and 1 tokens of the rows behind padding, with the mask and each text alone."""
    mask = torch.zeros_like(tokens)
    for row, length in enumerate((24, 9, 1)):
        mask[row, 24 - length :] = 1
    return tokens * mask, mask, [tokens[row : row + 1, 24 - n :] for row, n in enumerate((24, 9, 1))]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_left_padding_changes_nothing(model, tokens, kind):
    padded, mask, texts = left_padded(tokens)
    with torch.no_grad():
        logits = model(padded, attention_mask=mask).logits
    together = model.generate(padded, attention_mask=mask, **GREEDY, **KINDS[kind])[:, 24:]
    for row, text in enumerate(texts):
        with torch.no_grad():
            assert apart(logits[row, -text.shape[1] :], model(text).logits[0]) < CLOSE
        alone = model.generate(text, attention_mask=torch.ones_like(text), use_cache=False, **GREEDY)
        assert torch.equal(together[row], alone[0, text.shape[1] :]), row


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_packed_documents_equal_separate_ones(model, tokens, backend):
    model.set_attn_implementation(backend)
    cuts = [[9, 1, 14], [24], [2, 22]]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in cuts])
    with torch.no_grad():
        packed = model(tokens, position_ids=positions, use_cache=False).logits
        for row, lengths in enumerate(cuts):
            alone = [model(part[None], use_cache=False).logits[0] for part in tokens[row].split(lengths)]
            assert apart(packed[row], torch.cat(alone)) < CLOSE
    model.set_attn_implementation("sdpa")


def test_static_decoding_compiles_once(tokens):
    """The decode step is one whole graph, compiled once; the default backend makes kernels of it, this one runs it."""
    shallow = dict(num_blocks=3, xsa_layers=[2], value_embed_layers=[2], loop_start=1, loop_end=1, loop_passes=1)
    model, graphs = alive(tiny("414", **shallow)), []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    compiled = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend=backend)
    compiled._compile_all_devices = True  # generate compiles by itself on accelerators only
    torch._dynamo.reset()
    found = model.generate(tokens, cache_implementation="static", compile_config=compiled, **GREEDY)
    assert len(graphs) == 1
    assert torch.equal(found, model.generate(tokens, use_cache=False, **GREEDY))


def following(**fields):
    """A model whose rotary base follows the length of the call, as the published scripts have it."""
    return alive(tiny("414", rotary_length=None, rotary_trained_length=16, **fields))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_following_base_agrees_up_to_the_trained_length(tokens, kind):
    model = following()
    with torch.no_grad():
        whole = [model(tokens[:, :length], use_cache=False).logits[:, -1] for length in range(13, 21)]
    stepwise = in_pieces(model, tokens, caches(model.config)[kind], [6, *[1] * 18])
    far = [apart(stepwise[:, length - 1], logits) for length, logits in enumerate(whole, 13)]
    assert max(far[:4]) < CLOSE, "up to 16 positions every call has the trained base"
    # Keys stay as they were turned: from 17 on, a cached call is another computation than one over the whole text.
    assert min(far[4:]) > 100 * CLOSE


def test_the_caches_agree_where_the_base_grows(tokens):
    model = following()
    dynamic, static = (in_pieces(model, tokens, cache, [6, *[1] * 18]) for cache in caches(model.config).values())
    assert apart(static, dynamic) < CLOSE


def test_a_base_set_for_generation_agrees_at_every_length(tokens):
    model = following()
    model.config.rotary_length = 24
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
    assert apart(in_pieces(model, tokens, DynamicCache(config=model.config), [6, *[1] * 18]), whole) < CLOSE
    model.config.rotary_length = None
    with torch.no_grad():
        assert apart(model(tokens, use_cache=False).logits, whole) == 0, "the base of a call over all 24"


def test_two_rotated_dimensions_cannot_grow(tokens):
    model = following(rotary_dims=2)
    cache = DynamicCache(config=model.config)
    assert model(tokens[:, :10], past_key_values=cache).logits.isfinite().all()
    with pytest.raises(ConfigError, match="rotary_dims=2 has no stretched base, and 20 positions"):
        model(tokens[:, 10:20], past_key_values=cache)


def test_embeddings_stand_for_tokens_where_nothing_else_is_read_by_token(tokens):
    model = living("1394")
    embeds = model.get_input_embeddings()(tokens)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds).logits, model(tokens).logits)
    found = model.generate(inputs_embeds=embeds, **GREEDY)
    assert torch.equal(found, model.generate(tokens, **GREEDY)[:, 24:])
