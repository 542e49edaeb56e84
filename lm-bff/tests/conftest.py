"""Tiny models of every architecture the prompts run on, with tokenizers made on the spot: nothing is downloaded."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
    RobertaTokenizer,
)

from lm_bff.data import Example
from lm_bff.model import Pretrained

LABEL_WORDS = ["great", "terrible", "bad", "okay", "good", "Yes", "No", "Maybe", "subjective", "objective", "correct"]
LABEL_WORDS += ["incorrect", "Description", "Entity", "Expression", "Human", "Location", "Number", "yes", "no", "maybe"]
TEXT = [
    "the film is a warm and funny story about two people who meet on a train . it was great , and the acting is good .",
    "a dull and terrible plot with bad jokes , and the music was not okay at all . this is a film for no one .",
    "price caps may sound more attractive with every passing case . rate cases make price caps sound attractive .",
    "What city in the United States has the largest river ? Who wrote the book ? How many people live in the city ?",
]
POSITIVE = ["warm", "funny", "clever", "lovely", "bright", "moving", "fresh", "rich"]
NEGATIVE = ["dull", "boring", "stale", "weak", "cold", "flat", "tired", "empty"]


def byte_level_tokenizer(texts: list[str], size: int = 900) -> PreTrainedTokenizerBase:
    """GPT-2's byte-level BPE with RoBERTa's special tokens; every label word is one token with its space."""
    trainer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [f" {word}" for word in LABEL_WORDS] * 50
    trainer.train_from_iterator([*texts, *words], vocab_size=size, min_frequency=1, special_tokens=special)
    model = json.loads(trainer._tokenizer.to_str())["model"]
    merges = [tuple(merge) if not isinstance(merge, str) else tuple(merge.split(" ")) for merge in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges)


def wordpiece_tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    """BERT's, lower-casing, over the words of the texts and all letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = dict.fromkeys(" ".join([*texts, *LABEL_WORDS, *POSITIVE, *NEGATIVE]).lower().split())
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"._,:?!'", *letters, *(f"##{x}" for x in letters)]
    pieces += [word for word in words if word not in pieces]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=512)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerBase:
    return byte_level_tokenizer([*TEXT, " ".join(POSITIVE + NEGATIVE)])


@pytest.fixture(scope="session")
def wordpiece() -> PreTrainedTokenizerBase:
    return wordpiece_tokenizer(TEXT)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def _roberta(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 2}
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, **ids, **SMALL
    )
    return RobertaForMaskedLM(config)


def _prelayernorm(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = RobertaPreLayerNormConfig(
        vocab_size=len(tokenizer), max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, **SMALL
    )
    return RobertaPreLayerNormForMaskedLM(config)


def _bert(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **SMALL))


def _deberta(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        legacy=False,
        **SMALL,
    )
    return DebertaV2ForMaskedLM(config)


def _modernbert(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
    }
    return ModernBertForMaskedLM(
        ModernBertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **special, **SMALL)
    )


ARCHITECTURES = {
    "roberta": (_roberta, "bpe"),
    "roberta-prelayernorm": (_prelayernorm, "bpe"),
    "bert": (_bert, "wordpiece"),
    "deberta": (_deberta, "wordpiece"),
    "modernbert": (_modernbert, "bpe"),
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, bpe, wordpiece) -> Callable[[str], Path]:
    """A function: architecture -> a folder with a random tiny model (weights of every kind drawn) and its tokenizer."""
    root = tmp_path_factory.mktemp("models")

    def build(architecture: str) -> Path:
        folder = root / architecture
        if not folder.is_dir():
            make, kind = ARCHITECTURES[architecture]
            tokenizer = {"bpe": bpe, "wordpiece": wordpiece}[kind]
            torch.manual_seed(1)
            model = make(tokenizer)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def pretrained(model_folder) -> Callable[[str], Pretrained]:
    """A function: architecture -> Pretrained, loaded once."""
    loaded: dict[str, Pretrained] = {}

    def load(architecture: str = "roberta") -> Pretrained:
        if architecture not in loaded:
            loaded[architecture] = Pretrained.load(model_folder(architecture), device="cpu")
        return loaded[architecture]

    return load


@pytest.fixture(scope="session")
def sentiment() -> Callable[..., list[Example]]:
    """A function: n -> n/2 negative and n/2 positive examples that a few steps of training tell apart."""

    def make(count: int, seed: int = 0, labels: tuple = ("0", "1")) -> list[Example]:
        rng = random.Random(seed)
        examples = []
        for number in range(count):
            side = number * 2 // count
            words = rng.choices((NEGATIVE, POSITIVE)[side], k=3)
            text = f"the {words[0]} film is {words[1]} and {words[2]} about {rng.choice(TEXT[0].split())} {number} ."
            examples.append(Example((text,), labels[side], f"line {number}"))
        return examples

    return make


@pytest.fixture(scope="session")
def roberta_tokenizer() -> PreTrainedTokenizerBase:
    """RoBERTa's own tokenizer, for tests marked `mirror`; skips where its files are not in the mirror."""
    folder = Path(os.environ.get("REPRO_MIRROR", "")) / "mlm-masking" / "roberta-tokenizer"
    if not (folder / "merges.txt").is_file():
        pytest.skip(f"{folder} is not there")
    return RobertaTokenizer.from_pretrained(folder)


@pytest.fixture
def few_shot_folder(tmp_path, sentiment) -> Callable[..., Path]:
    """A function: seeds, k -> a folder of few-shot splits of sst-2 with those of `sentiment`, 12 test examples."""

    def write(seeds: tuple[int, ...] = (13, 42), k: int = 4) -> Path:
        root = tmp_path / "few-shot"
        for seed in seeds:
            for name, count, draw in (("train", 2 * k, seed), ("dev", 2 * k, seed + 100), ("test", 12, 7)):
                rows = [f"{e.sentences[0]} {name}\t{e.label}" for e in sentiment(count, seed=draw)]
                path = root / "SST-2" / f"{k}-{seed}" / f"{name}.tsv"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
        return root

    return write
