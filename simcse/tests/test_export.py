"""A sentence-transformers folder gives the vectors of the encoder that was exported."""

import numpy as np
import pytest
from safetensors import safe_open
from transformers import LlamaConfig, PreTrainedTokenizerFast, RobertaConfig

from shared import InputError
from simcse.embedding import embed_sentences, load_encoder
from simcse.encoder import SentenceEncoder
from simcse.export import export
from simcse.pooling import POOLERS

sentence_transformers = pytest.importorskip("sentence_transformers")


def vectors_of(folder, sentences) -> np.ndarray:
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(sentences)


@pytest.mark.parametrize("pooler", POOLERS)
def test_every_pooler_gives_equal_vectors(pooler, tiny_encoder_folder, sentences, tmp_path):
    encoder, tokenizer = load_encoder(str(tiny_encoder_folder), pooler, "cpu")
    texts = sentences(12)
    export(encoder, tokenizer, tmp_path / "exported")
    np.testing.assert_allclose(
        vectors_of(tmp_path / "exported", texts), embed_sentences(encoder, tokenizer, texts), atol=1e-5
    )


def test_normalised_export_of_a_decoder(tiny_tokenizer, sentences, tmp_path):
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    encoder = SentenceEncoder.from_config(config, pooler="last")
    texts = sentences(7)
    export(encoder, tiny_tokenizer, tmp_path / "exported", normalize=True)
    ours = embed_sentences(encoder, tiny_tokenizer, texts)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_of(tmp_path / "exported", texts), ours, atol=1e-5)


def test_exported_folder_opens_as_our_own_encoder_too(tiny_encoder_folder, sentences, tmp_path):
    encoder, tokenizer = load_encoder(str(tiny_encoder_folder), "avg_first_last", "cpu")
    folder = export(encoder, tokenizer, tmp_path / "exported")
    again, tokenizer_again = load_encoder(str(folder), device="cpu")
    assert again.eval_pooler == "avg_first_last"
    texts = sentences(5)
    np.testing.assert_allclose(
        embed_sentences(again, tokenizer_again, texts), embed_sentences(encoder, tokenizer, texts), atol=1e-6
    )


def test_no_random_head_slips_into_an_export_without_one(tiny_config, tiny_tokenizer, tmp_path):
    folder = export(SentenceEncoder.from_config(tiny_config, pooler="avg"), tiny_tokenizer, tmp_path / "exported")
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert not [name for name in weights.keys() if "pooler" in name]  # noqa: SIM118, it is not a dict


def test_max_length_is_exported(tiny_encoder_folder, sentences, tmp_path):
    encoder, tokenizer = load_encoder(str(tiny_encoder_folder), "avg", "cpu")
    folder = export(encoder, tokenizer, tmp_path / "exported", max_length=6)
    texts = sentences(6)
    np.testing.assert_allclose(
        vectors_of(folder, texts), embed_sentences(encoder, tokenizer, texts, max_length=6), atol=1e-5
    )


def test_refusals_leave_nothing_behind(tiny_encoder_folder, tmp_path):
    encoder, tokenizer = load_encoder(str(tiny_encoder_folder), "avg", "cpu")
    with pytest.raises(InputError, match="max_length is 65, but must be from 1 to 64"):
        export(encoder, tokenizer, tmp_path / "exported", max_length=65)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty"):
        export(encoder, tokenizer, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_roberta_positions_are_respected(tiny_tokenizer, sentences, tmp_path):
    config = RobertaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=34,
        pad_token_id=tiny_tokenizer.pad_token_id,
        type_vocab_size=1,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    encoder = SentenceEncoder.from_config(config, pooler="avg")
    texts = [*sentences(4), " ".join(sentences(20))]
    folder = export(encoder, tokenizer, tmp_path / "exported")
    np.testing.assert_allclose(vectors_of(folder, texts), embed_sentences(encoder, tokenizer, texts), atol=1e-5)
