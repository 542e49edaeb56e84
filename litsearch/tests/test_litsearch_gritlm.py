"""GritLM, tiny and random: attention in both directions, the mean over the text's own tokens.

What a vector should be is computed here from the formulas and the saved weights.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from litsearch.transformer_embedder import TransformerEmbedder, instruction_tokens

TEXTS = [
    "Title: Retrieval of scientific papers\nAbstract: We rank papers for questions of researchers.",
    "Title: Parsing",
    "A parser learns from ten annotated sentences, and from nothing else, as far as we know.",
    "x",
]
QUESTION, KEY = "<|user|>\nGiven a query\n<|embed|>\n", "<|embed|>\n"
CORPUS = [*TEXTS, "<|user|> Given a research query, retrieve the paper <|embed|>"] * 4


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator(CORPUS, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module")
def mistral(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mistral"
    tokenizer = mistral_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, sliding_window=16,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def mistral_by_hand(folder: Path, ids: list[int], causal: bool) -> np.ndarray:
    """Last hidden states `(seq, hidden)` in float64, from the formulas (Jiang et al. 2023) and the saved weights."""
    from safetensors.numpy import load_file

    weights = {
        name.removeprefix("model."): w.astype(np.float64) for name, w in load_file(folder / "model.safetensors").items()
    }
    config = json.loads((folder / "config.json").read_text())
    heads, groups, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    theta = (config.get("rope_parameters") or {}).get("rope_theta") or config["rope_theta"]
    seq = len(ids)

    def norm(x, w):
        return w * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)

    angles = np.arange(seq)[:, None] / theta ** (np.arange(0, size, 2) / size)
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))

    def rotate(x):
        half = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * cos + half * sin

    x = weights["embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        w = {name: weights[f"layers.{layer}.{name}.weight"] for name in (
            "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
            "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )}  # fmt: skip
        y = norm(x, w["input_layernorm"])
        q = rotate((y @ w["self_attn.q_proj"].T).reshape(seq, heads, size))
        k = rotate((y @ w["self_attn.k_proj"].T).reshape(seq, groups, size)).repeat(heads // groups, 1)
        v = (y @ w["self_attn.v_proj"].T).reshape(seq, groups, size).repeat(heads // groups, 1)
        logits = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        if causal:
            logits = np.where(np.tril(np.ones((seq, seq), bool)), logits, -np.inf)
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", probabilities, v).reshape(seq, -1) @ w["self_attn.o_proj"].T
        y = norm(x, w["post_attention_layernorm"])
        gate = y @ w["mlp.gate_proj"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
    return norm(x, weights["norm.weight"])


GRIT = {"bidirectional": True, "exclude_instruction": True, "projection": False, "max_length": 128}


def test_gritlm_attends_in_both_directions_and_averages_the_texts_own_tokens(mistral):
    """Texts longer than the checkpoint's sliding window among them: every token sees every other."""
    grit = TransformerEmbedder(str(mistral), QUESTION, KEY, **GRIT)
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    for instruction, vectors in ((QUESTION, grit.encode_queries(TEXTS)), (KEY, grit.encode_keys(TEXTS))):
        skipped = len(tokenizer(instruction)["input_ids"])
        assert tokenizer(instruction)["input_ids"][0] == tokenizer.bos_token_id
        rows = [tokenizer(instruction + text)["input_ids"] for text in TEXTS]
        expected = unit([mistral_by_hand(mistral, ids, causal=False)[skipped:].mean(0) for ids in rows])
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        one_way = unit([mistral_by_hand(mistral, ids, causal=True)[skipped:].mean(0) for ids in rows])
        assert np.abs(vectors - one_way).max() > 0.01


def test_both_directions_hold_without_padding_too(mistral):
    """A batch of one needs no mask, and then the attention function's own causal flag decides."""
    grit = TransformerEmbedder(str(mistral), "", "", **GRIT)
    ids = AutoTokenizer.from_pretrained(mistral)(TEXTS[0])["input_ids"]
    expected = unit([mistral_by_hand(mistral, ids, causal=False).mean(0)])
    np.testing.assert_allclose(grit.encode_keys(TEXTS[:1]), expected, atol=1e-5)


def test_a_decoder_stays_causal_unless_asked(mistral):
    decoder = TransformerEmbedder(str(mistral), pooling="last", projection=False, max_length=16)
    text = "Title: Parsing"
    ids = AutoTokenizer.from_pretrained(mistral)(text)["input_ids"]
    expected = unit(mistral_by_hand(mistral, ids, causal=True)[-1:])
    np.testing.assert_allclose(decoder.encode_keys([text]), expected, atol=1e-5)


def test_a_text_with_no_tokens_of_its_own_becomes_a_zero_vector(mistral):
    """The mean over nothing, which is NaN where it is divided by zero."""
    grit = TransformerEmbedder(str(mistral), "", "<|embed|>\n", **GRIT)
    vectors = grit.encode_keys(["", "text"])
    assert not vectors[0].any()
    assert np.isfinite(vectors).all()


def test_the_instruction_that_is_left_out_includes_the_first_token(mistral):
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    for instruction in (QUESTION, KEY):
        counted = instruction_tokens(tokenizer, instruction)
        assert counted == len(tokenizer(instruction, add_special_tokens=False)["input_ids"]) + 1
        assert tokenizer(instruction + TEXTS[0])["input_ids"][:counted] == tokenizer(instruction)["input_ids"]
