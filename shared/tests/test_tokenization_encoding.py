"""Encoding word by word gives the ids that the library gives."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from shared import InputError
from shared.tokenization import encoding, tokenizer_facts
from shared.tokenization.encoding import Encoder, backend, without_special_tokens, works_by_words

AWKWARD = (
    "it's we'll I'M they've o'clock ''s 's",
    "a  b   c\t\td\n\n\ne \n f\r\n g \r h",
    "naïve café élan Müller's x\u00a0y\u2003z \u2028 \u3000end",
    "中文 字符 with words, und Ümlaute; emoji 🙂🙂 a🙂b",
    "x=1;y[2]={'a':-3.5e-7}  # </s> <mask> <s>x",
    "\x00\x01 a\x1cb \x1f c\x7f d\x85e",
    "٣٤٥ 12٣ ⅷ x² ½ a̐éö̲ ",
    "   ",
    "\n",
    "",
    " trailing  ",
    "ſ 'ſ K's",
)


@pytest.fixture(scope="module")
def by_words(bpe):
    encoder = Encoder(backend(bpe).to_str(), np.dtype("<u2"))
    assert encoder.by_words
    return encoder


def library(bpe, texts: list[str]) -> list[list[int]]:
    own = without_special_tokens(backend(bpe).to_str())
    return [encoded.ids for encoded in own.encode_batch(texts, add_special_tokens=False)]


def decoded(encoded: list[bytes]) -> list[list[int]]:
    return [np.frombuffer(ids, "<u2").tolist() for ids in encoded]


def test_awkward_text_gets_the_ids_of_the_library(bpe, by_words):
    assert decoded(by_words(AWKWARD)) == library(bpe, list(AWKWARD))


PIECES_OF_TEXT = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from(
            [" ", "  ", "\n", "\t", "\r\n", "'", "'s", "'LL", "the", "Code", "42", "--", "é", "\u00a0", "\x1c"]
        ),
    ),
    max_size=12,
).map("".join)


@given(st.lists(PIECES_OF_TEXT, min_size=1, max_size=4))
@example(["a \u0301b"])
def test_any_text_gets_the_ids_of_the_library(bpe, by_words, texts):
    assert decoded(by_words(texts)) == library(bpe, texts)


def test_a_special_token_in_a_text_is_text(bpe, by_words):
    (ids,) = decoded(by_words(["</s><mask>"]))
    assert not set(ids) & set(bpe.all_special_ids)
    assert bpe.decode(ids) == "</s><mask>"


def test_a_full_cache_changes_nothing(bpe, by_words, monkeypatch):
    monkeypatch.setattr(encoding, "CACHED_WORDS", 5)
    monkeypatch.setattr(encoding, "CACHED_LETTERS", 3)
    texts = [f"word{i} and {'long' * 30}{i}" for i in range(20)] * 2
    assert decoded(by_words(texts)) == library(bpe, texts)
    assert len(by_words.known) <= 5


def test_half_of_a_surrogate_pair_does_not_stop_a_corpus(bpe, by_words):
    text = json.loads(r'"broken \ud83d emoji"')
    assert decoded(by_words([text])) == library(bpe, ["broken \ufffd emoji"])


def test_other_kinds_of_tokenizers_take_the_library(bpe):
    word_piece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    word_piece.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = Encoder(word_piece.to_str(), np.dtype("<u4"))
    assert not encoder.by_words
    assert [np.frombuffer(ids, "<u4").tolist() for ids in encoder(["a ab", "", "c"])] == [[1, 1, 2], [], [0]]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: setattr(raw, "normalizer", normalizers.NFC()),
        lambda raw: setattr(raw, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda raw: setattr(raw, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda raw: raw.add_tokens(["the whole phrase"]),
    ],
    ids=["normalizer", "prefix space", "no splitting", "added word"],
)
def test_what_reaches_across_words_is_not_encoded_by_words(bpe, change):
    raw = without_special_tokens(backend(bpe).to_str())
    change(raw)
    assert not works_by_words(json.loads(raw.to_str()))
    encoder = Encoder(raw.to_str(), np.dtype("<u2"))
    texts = ["see the whole phrase here", *AWKWARD]
    assert decoded(encoder(texts)) == [e.ids for e in raw.encode_batch(texts, add_special_tokens=False)]


def test_the_hash_is_of_what_decides_the_ids(bpe):
    before = tokenizer_facts(bpe).sha256
    raw = Tokenizer.from_str(backend(bpe).to_str())
    raw.enable_truncation(5)
    raw.enable_padding()
    assert tokenizer_facts(raw).sha256 == before
    raw.add_tokens(["another"])
    assert tokenizer_facts(raw).sha256 != before


def test_facts_name_the_special_ids(bpe):
    facts = tokenizer_facts(bpe)
    assert facts.vocab_size == 401
    assert facts.special_ids == {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 400}


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(InputError, match="no fast tokenizer"):
        tokenizer_facts(str.split)


def test_a_trained_tokenizer_is_the_same_when_trained_again():
    def trained() -> str:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw.train_from_iterator(AWKWARD * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
        return tokenizer_facts(raw).sha256

    assert trained() == trained()
