"""Vectors do not depend on how sentences are batched, and nothing is encoded twice or cut in silence."""

import logging
from unittest.mock import patch

import numpy as np
import pytest
import torch

from shared import InputError
from simcse.embedding import embed_sentences, load_encoder
from simcse.pooling import POOLERS


@pytest.fixture(scope="module")
def tiny(tiny_encoder_folder):
    return load_encoder(str(tiny_encoder_folder), "avg", "cpu")


def one_by_one(encoder, tokenizer, texts) -> np.ndarray:
    with torch.inference_mode():
        return np.concatenate([encoder.embed(**tokenizer(text, return_tensors="pt")).numpy() for text in texts])


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_those_of_sentences_encoded_alone(pooler, threads, tiny_encoder_folder, sentences):
    encoder, tokenizer = load_encoder(str(tiny_encoder_folder), pooler, "cpu")
    texts = sentences(40)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        vectors = embed_sentences(encoder, tokenizer, texts, batch_tokens=64)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert vectors.dtype == np.float32 and vectors.shape == (40, 32)
    np.testing.assert_allclose(vectors, one_by_one(encoder, tokenizer, texts), atol=1e-5)


def test_repeated_sentences_are_encoded_once(tiny, sentences):
    encoder, tokenizer = tiny
    texts = sentences(6)
    with patch.object(encoder, "embed", wraps=encoder.embed) as embed:
        vectors = embed_sentences(encoder, tokenizer, [*texts, *texts[::-1], texts[2]])
    assert sum(len(call.args[0]) for call in embed.call_args_list) == 6
    np.testing.assert_array_equal(vectors, vectors[[0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0, 2]])


def test_batches_hold_the_budget_and_go_from_long_to_short(tiny, sentences):
    encoder, tokenizer = tiny
    with patch.object(encoder, "embed", wraps=encoder.embed) as embed, patch("torch.get_num_threads", lambda: 1):
        embed_sentences(encoder, tokenizer, sentences(50), batch_tokens=48, batch_rows=3)
    shapes = [tuple(call.args[0].shape) for call in embed.call_args_list]
    assert all(rows * longest <= 48 and rows <= 3 for rows, longest in shapes)
    assert [longest for _, longest in shapes] == sorted((longest for _, longest in shapes), reverse=True)
    assert len(shapes) < 50


def test_a_sentence_above_the_budget_gets_a_batch_of_its_own(tiny, sentences):
    encoder, tokenizer = tiny
    texts = sentences(3)
    np.testing.assert_allclose(
        embed_sentences(encoder, tokenizer, texts, batch_tokens=1), one_by_one(encoder, tokenizer, texts), atol=1e-5
    )


def test_truncation_is_counted_and_keeps_the_special_tokens(tiny, caplog):
    encoder, tokenizer = tiny
    long, short = "dog cat house park street river", "dog cat"
    with caplog.at_level(logging.WARNING, "simcse.embedding"):
        vectors = embed_sentences(encoder, tokenizer, [long, short, short], max_length=5)
    assert "1 of 2 sentences are longer than 5 tokens" in caplog.text
    np.testing.assert_allclose(vectors, one_by_one(encoder, tokenizer, ["dog cat house", short, short]), atol=1e-5)


def test_no_max_length_means_the_models_positions(tiny, caplog):
    encoder, tokenizer = tiny
    with caplog.at_level(logging.WARNING, "simcse.embedding"):
        embed_sentences(encoder, tokenizer, ["dog " * 62])
        assert not caplog.text
        embed_sentences(encoder, tokenizer, ["dog " * 63])
    assert "1 of 1 sentences are longer than 64 tokens" in caplog.text


def test_dropout_is_off_and_training_mode_comes_back(tiny, sentences):
    encoder, tokenizer = tiny
    expected = embed_sentences(encoder, tokenizer, sentences(4))
    encoder.train()
    try:
        np.testing.assert_array_equal(embed_sentences(encoder, tokenizer, sentences(4)), expected)
        assert encoder.training
    finally:
        encoder.eval()


def test_bfloat16_encoder_gives_float32_vectors(tiny_encoder_folder, sentences):
    encoder, tokenizer = load_encoder(str(tiny_encoder_folder), "avg", "cpu")
    expected = embed_sentences(encoder, tokenizer, sentences(4))
    vectors = embed_sentences(encoder.bfloat16(), tokenizer, sentences(4))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=0.05)


@pytest.mark.parametrize(
    ("sentences_given", "options", "message"),
    [
        ([], {}, "sentences is empty"),
        ("one string", {}, "sentences is one string"),
        (["a", None], {}, r"sentences\[1\] is None \(NoneType\)"),
        (["a"], {"max_length": 65}, "max_length is 65, but the model has 64 positions"),
        (["a"], {"max_length": 2}, "max_length is 2"),
        (["a"], {"batch_tokens": 0}, "batch_tokens is 0"),
        (["a"], {"batch_rows": -1}, "batch_rows is -1"),
    ],
)
def test_bad_input_is_named(tiny, sentences_given, options, message):
    with pytest.raises(InputError, match=message):
        embed_sentences(*tiny, sentences_given, **options)


def test_missing_model_and_missing_head_are_named(tmp_path, tiny_config, tiny_tokenizer):
    from simcse.encoder import SentenceEncoder

    with pytest.raises(InputError, match="nowhere"):
        load_encoder(str(tmp_path / "nowhere"))
    folder = SentenceEncoder.from_config(tiny_config, pooler="avg").save_pretrained(tmp_path / "avg", tiny_tokenizer)
    with pytest.raises(InputError, match="no pooler weights"):
        load_encoder(str(folder), "cls")


def test_the_bundled_encoder_equals_sentence_transformers():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from shared import hub

    texts = ["A man is playing a guitar.", "Two dogs run.", "", "Shares fell sharply on Monday, analysts said. " * 20]
    encoder, tokenizer = load_encoder("minilm", device="cpu")
    assert encoder.eval_pooler == "avg"
    reference = sentence_transformers.SentenceTransformer(hub.model_path("minilm", "simcse"), device="cpu")
    ours = embed_sentences(encoder, tokenizer, texts, max_length=reference.max_seq_length)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, reference.encode(texts), atol=1e-5)
