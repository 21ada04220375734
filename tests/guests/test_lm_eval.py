"""lm-eval's rolling log-likelihood of a text gives the bits per byte that our plain scoring gives.

What makes the two the same quantity, for a text of ``N`` tokens and windows of ``W``:

- Prefix. lm-eval puts ``prefix_token_id`` before the text, the tokenizer's BOS by default; our stream of one document
  is BOS and the text. Our tokenizer would add BOS by itself, so lm-eval must be told ``add_bos_token=False``: BOS
  would otherwise stand there twice, and the second be scored.
- Windows. lm-eval predicts ``W`` tokens from the ``W`` inputs before each of them, without overlap, and so does a
  stride of ``W`` here. Only a last window that is not full differs: lm-eval moves it left until it has ``W`` inputs,
  so its targets see context that plain scoring withholds. Where ``W`` divides ``N``, or ``N < W``, nothing differs;
  elsewhere the last window is scored here as lm-eval has it.
- Bytes. lm-eval's tasks divide by the UTF-8 bytes of the text; ours counts the bytes that each target spells. They
  agree for a text that does not begin with a blank. BOS is never a target within one document.
- Several texts. lm-eval scores each by itself and divides the sum of nats by the sum of bytes.
"""

import math
import warnings

import pytest
import torch
from accelerate import Accelerator
from model.artifact_folder import prose
from pyarrow.parquet import read_table
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.config import EvaluationConfig
from evaluation.scorer import ScoredNats, score
from evaluation.windows import ValidationTokens, Window, sliding_windows, window_batch
from pgolf.corpus.tokenizer import byte_table

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of optional parts of its own dependencies
    reason = "lm-eval is an optional guest: pip install lm-eval"
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason=reason, exc_type=ImportError)
    from lm_eval.api.instance import Instance

W = 48
TRUST = {"trust_remote_code": True}
# lm-eval adds the nats of a window in float32, we in float64: 1.4e-7 was the most that came out.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def tokenizer(artifact):
    return AutoTokenizer.from_pretrained(artifact, **TRUST)


@pytest.fixture(scope="module")
def harness(artifact):
    return huggingface.HFLM(
        pretrained=str(artifact), device="cpu", max_length=W, add_bos_token=False, batch_size=4, **TRUST
    )


@pytest.fixture(scope="module")
def model(artifact):
    return AutoModelForCausalLM.from_pretrained(artifact, **TRUST)


def their_bits_per_byte(harness, texts):
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    nats = -sum(harness.loglikelihood_rolling(requests, disable_tqdm=True))
    return nats / sum(len(text.encode()) for text in texts) / math.log(2)


def stream(tokenizer, text):
    """BOS and the text; and that its targets spell the bytes of the text."""
    ids = torch.tensor(tokenizer(text).input_ids)
    assert ids[0] == tokenizer.bos_token_id and (ids[1:] != tokenizer.bos_token_id).all()
    assert int(byte_table(tokenizer).count(ids[:-1], ids[1:]).sum()) == len(text.encode())
    return ValidationTokens(ids)


def whole_windows(tokenizer, seed):
    """A text of several windows whose last one is full."""
    for count in range(60, 400):
        text = prose(count, seed)
        if (len(tokenizer(text).input_ids) - 1) % W == 0:
            return text
    raise AssertionError("no such text")


def test_whole_windows_agree(harness, model, tokenizer):
    text = whole_windows(tokenizer, seed=3)
    tokens = stream(tokenizer, text)
    assert tokens.targets % W == 0 and tokens.targets > 2 * W
    config = EvaluationConfig(window=W, stride=W, compile=False, precision="fp32")
    ours = score(model, tokens, config, Accelerator(cpu=True)).score(byte_table(tokenizer))
    assert ours.bits_per_byte == pytest.approx(their_bits_per_byte(harness, [text]), abs=CLOSE)


def test_short_texts_agree(harness, model, tokenizer):
    texts = [prose(count, count) for count in (3, 7, 9)]
    config = EvaluationConfig(window=W, stride=W, compile=False, precision="fp32")
    nats = 0.0
    for text in texts:
        tokens = stream(tokenizer, text)
        assert tokens.targets < W
        nats += score(model, tokens, config, Accelerator(cpu=True)).nats.double().sum().item()
    ours = nats / sum(len(text.encode()) for text in texts) / math.log(2)
    assert ours == pytest.approx(their_bits_per_byte(harness, texts), abs=CLOSE)


def test_the_validation_sample_agrees(harness, model, tokenizer, shared):
    """Twenty web pages; one that begins with a blank has a byte more than its targets spell, and is passed over."""
    pages = read_table(shared / "data" / "validation.parquet", columns=["text"]).column("text").to_pylist()
    config = EvaluationConfig(window=W, stride=W, compile=False, precision="fp32")
    nats, texts = 0.0, []
    for page in pages:
        # The head of a page, cut to whole windows.
        text = tokenizer.decode(tokenizer(page[:2000]).input_ids[: 4 * W + 1], skip_special_tokens=True)
        ids = torch.tensor(tokenizer(text).input_ids)
        if len(ids) == 4 * W + 1 and not text.startswith(" "):
            texts.append(text)
            tokens = stream(tokenizer, text)
            nats += score(model, tokens, config, Accelerator(cpu=True)).nats.double().sum().item()
        if len(texts) == 20:
            break
    assert len(texts) == 20
    ours = nats / sum(len(text.encode()) for text in texts) / math.log(2)
    assert ours == pytest.approx(their_bits_per_byte(harness, texts), abs=CLOSE)


def test_a_last_window_moved_left_agrees(harness, model, tokenizer):
    text = prose(150, seed=5)
    tokens = stream(tokenizer, text)
    *full, last = sliding_windows(tokens.targets, W, W)
    assert 1 < last.length < W, "the last window must not be full"
    moved = Window(tokens.targets - W, W, W - last.length)
    assert moved.scored == last.scored
    with torch.no_grad():
        nats = sum(
            ScoredNats(model)(*window_batch(tokens, [window], W), window.first, W).double().sum().item()
            for window in [*full, moved]
        )
    theirs = their_bits_per_byte(harness, [text])
    assert nats / len(text.encode()) / math.log(2) == pytest.approx(theirs, abs=CLOSE)
    config = EvaluationConfig(window=W, stride=W, compile=False, precision="fp32")
    plain = score(model, tokens, config, Accelerator(cpu=True)).score(byte_table(tokenizer)).bits_per_byte
    assert plain != pytest.approx(theirs, abs=100 * CLOSE), "the context of the last window counts"
