"""Tokenizers: lossless BPE, SentencePiece models with their own ids, and the bytes that ids stand for."""

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import WORDS, prose, train_sentencepiece
from transformers import AutoTokenizer

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.tokenizer import (
    MODEL_FILE,
    Encoder,
    byte_table,
    load_byte_table,
    load_tokenizer,
    read_sentencepiece,
    save_byte_table,
    save_tokenizer,
    train_bpe,
)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(prose(), 400)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_sentencepiece(tmp_path_factory.mktemp("model") / "tiny.model")


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def counted(tokenizer, text):
    """Bytes that the ids of a text stand for behind BOS."""
    stream = torch.tensor([1, *ids(tokenizer, text)])
    return int(byte_table(tokenizer).count(stream[:-1], stream[1:]).sum())


# Text without unpaired surrogates (no UTF-8) and without the blank's mark (the one character that is not kept).
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40)
SPELLED = st.sampled_from([*WORDS, " ", "  ", " " * 9, "\n", "<s>", "<0x41>", "17", "é"])
TEXTS = TEXT | st.lists(SPELLED, max_size=12).map("".join)


@settings(max_examples=300)
@given(text=TEXTS)
def test_a_trained_tokenizer_loses_nothing(bpe, text):
    assert bpe.decode(ids(bpe, text)) == text
    assert bpe.decode(bpe(text)["input_ids"], skip_special_tokens=True) == text


@settings(max_examples=200)
@given(text=TEXTS)
def test_the_bytes_of_the_ids_are_the_bytes_of_the_text(bpe, text):
    # A blank behind BOS is not text: the challenge's rule, which a lossless tokenizer inherits.
    assert counted(bpe, text) == len(text.encode()) - text.startswith(" ")


def test_the_blanks_mark_comes_back_as_a_blank(bpe):
    assert bpe.decode(ids(bpe, "a\u2581b")) == "a b"


def test_ids_are_the_challenges(bpe):
    assert len(bpe) == 400
    assert bpe.convert_ids_to_tokens([0, 1, 2, 3, 4, 259]) == ["<pad>", "<s>", "</s>", "<unk>", "<0x00>", "<0xFF>"]
    assert (bpe.pad_token_id, bpe.bos_token_id, bpe.eos_token_id, bpe.unk_token_id) == (0, 1, 2, 3)
    assert ids(bpe, "€") == [4 + byte for byte in "€".encode()]
    assert bpe("the")["input_ids"] == [1, *ids(bpe, "the")]


def test_words_are_cut_as_sentencepiece_cuts_them(bpe):
    pieces = bpe.convert_ids_to_tokens(ids(bpe, "with the 1234.\n\n"))
    assert pieces[-8:] == ["\u2581the", "\u2581", "1", "2", "3", "4", ".", "\n\n"]
    assert bpe.convert_ids_to_tokens(ids(bpe, "\n\n        Then"))[:3] == ["\n\n", "\u2581" * 7, "\u2581Then"]


def test_training_is_deterministic(bpe):
    assert train_bpe(iter(prose()), 400).backend_tokenizer.to_str() == bpe.backend_tokenizer.to_str()


@pytest.mark.parametrize("vocab_size", [260, 261, 65537])
def test_impossible_sizes_are_refused(vocab_size):
    with pytest.raises(CorpusError, match=f"vocabulary of {vocab_size};.*choose 262 to 65536"):
        train_bpe(prose(), vocab_size)


def test_the_smallest_size_works():
    tokenizer = train_bpe(["a    b"] * 3, 262)
    assert len(tokenizer) == 262 and tokenizer.decode(ids(tokenizer, "xy  z")) == "xy  z"


def test_too_little_text_is_named():
    with pytest.raises(CorpusError, match="asked for 400 pieces; the text has words for 26"):
        train_bpe(["abc"], 400)


@pytest.mark.parametrize("kind", ["bpe", "model"])
def test_control_pieces_in_a_page_stay_text(kind, bpe, model, tmp_path):
    tokenizer = bpe if kind == "bpe" else read_sentencepiece(model)
    save_tokenizer(tokenizer, tmp_path / "saved")
    for edition in (tokenizer, load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")):
        found = edition("<s> </s><pad><unk><0x41>")["input_ids"]
        assert found[0] == 1 and not {0, 1, 2, 3, 4 + 0x41} & set(found[1:])
        assert edition.decode(found[1:]) == "<s> </s><pad><unk><0x41>"
        assert edition(["a", "a a"], padding=True)["input_ids"][0][0] == 0  # padded on the left


def encoded(encoder, texts):
    return [found.tolist() for found in encoder.encode(texts)]


def test_the_encoder_of_a_trained_tokenizer_agrees_with_it(bpe):
    texts = ["", "the river", "<s> the </s>"]
    bpe(texts, padding=True, truncation=True, max_length=3)  # leaves both settings behind in the tokenizer
    encoder = Encoder(bpe)
    assert encoded(encoder, texts) == [[1, *ids(bpe, text)] for text in texts]
    bpe(texts, padding=True, truncation=True, max_length=3)
    assert encoded(encoder, texts) == [[1, *ids(bpe, text)] for text in texts]
    assert encoded(Encoder(bpe, one_core=True), texts) == [[1, *ids(bpe, text)] for text in texts]
    assert Encoder(bpe).encode([]) == []


UNUSUAL = ["  ", "\n", "\t", "\u3000", "\u00a0", "\u2581", "<s>", "½", "ﬁ", "é", "日本", "😀", "09"]
PLAIN = st.lists(st.sampled_from([*WORDS, " ", *UNUSUAL]), max_size=12).map("".join)


@settings(max_examples=300)
@given(text=PLAIN | st.text(st.characters(max_codepoint=0x24F), max_size=30))
def test_a_converted_model_has_sentencepieces_ids(model, text):
    exact = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert ids(read_sentencepiece_cached(model), text) == exact.encode(text)


CONVERTED = {}


def read_sentencepiece_cached(path):
    if path not in CONVERTED:
        CONVERTED[path] = read_sentencepiece(path)
    return CONVERTED[path]


def test_the_known_difference_is_stacked_combining_marks(model):
    # Should a release of tokenizers cure it, drop this test and the sentence in sentencepiece_model.py.
    exact = sentencepiece.SentencePieceProcessor(model_file=str(model))
    text = "e\u0301\u0323"
    assert ids(read_sentencepiece_cached(model), text) != exact.encode(text)
    assert encoded(Encoder(read_sentencepiece_cached(model), model), [text]) == [[1, *exact.encode(text)]]


def test_the_byte_table_follows_the_piece_types(model):
    exact = sentencepiece.SentencePieceProcessor(model_file=str(model))
    table = byte_table(read_sentencepiece_cached(model), vocab_size=len(exact) + 3)
    for number in range(len(exact)):
        piece = exact.id_to_piece(number)
        control = exact.is_control(number) or exact.is_unknown(number)
        length = 1 if exact.is_byte(number) else len(piece.removeprefix("\u2581").encode())
        row = (table.base_bytes[number], table.has_leading_space[number], table.is_boundary[number])
        assert row == (0, False, True) if control else (length, piece.startswith("\u2581"), False)
    assert table.base_bytes.dtype == torch.int16 and len(table.base_bytes) == len(exact) + 3
    assert table.is_boundary[-3:].all() and not table.base_bytes[-3:].any()


def test_a_saved_folder_rebuilds_the_exact_encoder(model, tmp_path):
    save_tokenizer(read_sentencepiece_cached(model), tmp_path / "saved", model)
    assert (tmp_path / "saved" / MODEL_FILE).read_bytes() == model.read_bytes()
    exact = sentencepiece.SentencePieceProcessor(model_file=str(model))
    texts = ["The river\n\nthe  river", "e\u0301\u0323"]
    for one_core in (False, True):
        encoder = Encoder.from_folder(tmp_path / "saved", one_core)
        assert encoded(encoder, texts) == [[1, *exact.encode(text)] for text in texts]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")  # the .model beside it changes nothing
    assert loaded(texts[0] + "<s>")["input_ids"] == [1, *exact.encode(texts[0] + "<s>")]
    with pytest.raises(CorpusError, match="not empty"):
        save_tokenizer(read_sentencepiece_cached(model), tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "unigram"}, "asked for a BPE model"),
        ({"byte_fallback": False, "vocab_size": 100}, "256 byte pieces"),
        ({"add_dummy_prefix": True}, "without dummy prefix"),
        ({"pad_id": -1, "unk_id": 0}, "pad, bos, eos, unk"),
        ({"user_defined_symbols": ["<cap>"]}, "asked for"),
        ({"treat_whitespace_as_suffix": True}, "prefixes of pieces"),
    ],
)
def test_a_model_with_another_layout_is_refused(tmp_path, changes, message):
    with pytest.raises(CorpusError, match=message):
        read_sentencepiece(train_sentencepiece(tmp_path / "other.model", **changes))


def test_a_file_that_is_no_model_is_refused(model, tmp_path):
    with pytest.raises(CorpusError, match="No such file"):
        read_sentencepiece(tmp_path / "absent.model")
    for content in (b"", b"text, not a model", model.read_bytes()[:5000]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(CorpusError, match=r"no such model|asked for"):
            read_sentencepiece(tmp_path / "bad.model")


def test_a_byte_table_is_stored(bpe, tmp_path):
    table = byte_table(bpe, 500)
    save_byte_table(table, tmp_path / "t.safetensors")
    loaded = load_byte_table(tmp_path / "t.safetensors")
    for name, tensor in vars(table).items():
        assert torch.equal(vars(loaded)[name], tensor) and vars(loaded)[name].dtype == tensor.dtype
    (tmp_path / "t.safetensors").write_bytes(b"short")
    with pytest.raises(CorpusError, match="found no readable one"):
        load_byte_table(tmp_path / "t.safetensors")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"no tokenizer.json"):
        load_tokenizer(tmp_path)
