"""Reranking by a model that reads question and paper together."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from litsearch.cross_encoder import CrossEncoder, ScoreJournal, rerank
from litsearch.runs import read_run
from shared import InputError

TEXTS = ["dense vectors", "a parser learns from ten sentences", "rhyme and metre " * 9, "x"]


@pytest.fixture(scope="module")
def make_model(tmp_path_factory):
    """make_model(labels) -> a tiny random BERT that scores pairs."""
    folder = tmp_path_factory.mktemp("models")

    def make(labels: int, kind=BertForSequenceClassification, name: str | None = None):
        target = folder / (name or f"bert-{labels}")
        if target.exists():
            return target
        raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
        raw.train_from_iterator([*TEXTS, "which papers rank papers for researchers?"] * 5, trainer)
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, raw.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer.save_pretrained(target)
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64, num_labels=labels, initializer_range=0.5,
        )  # fmt: skip
        kind(config).save_pretrained(target)
        return target

    return make


@pytest.mark.parametrize("labels", [1, 2])
def test_scores_are_the_models_logits_pair_by_pair(make_model, labels):
    folder = make_model(labels)
    scores = CrossEncoder(str(folder), max_length=64, batch_tokens=40).scores("which papers?", TEXTS)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for score, text in zip(scores, TEXTS, strict=True):
        pair = tokenizer("which papers?", text, truncation="only_second", max_length=64, return_tensors="pt")
        with torch.no_grad():
            logits = model(**pair).logits[0]
        expected = logits[0] if labels == 1 else logits[1] - logits[0]
        assert score == pytest.approx(float(expected), abs=1e-5)
    assert len(set(scores.tolist())) == len(TEXTS)


def test_a_long_paper_is_cut_and_the_question_never(make_model):
    model = CrossEncoder(str(make_model(1)), max_length=20)
    long = "rhyme and metre " * 50
    assert model.scores("which papers?", [long]) == pytest.approx(model.scores("which papers?", [long + " more"]))


def test_models_that_cannot_score_are_refused(make_model):
    with pytest.raises(InputError, match=r"lacks classifier\.\w+, so its scores would be random"):
        CrossEncoder(str(make_model(1, BertModel, "no-head")), max_length=64)
    with pytest.raises(InputError, match="has 3 classes"):
        CrossEncoder(str(make_model(3)), max_length=64)
    with pytest.raises(InputError, match="more than the 64 positions"):
        CrossEncoder(str(make_model(1)), max_length=512)
    with pytest.raises(InputError, match="there is none at"):
        CrossEncoder("./no/such/folder")


@pytest.fixture
def overrides(make_model, run_overrides):
    return [*run_overrides, f"model={make_model(1)}", "encoder.max_length=64"]


def made(config, *overrides: str):
    return rerank(config(*overrides, name="cross_encoder"), Console(quiet=True))


def test_a_run_is_ordered_by_its_scores(overrides, config, corpus, queries, make_model):
    out = made(config, *overrides, "max_k=5")
    run = read_run(out)
    model = CrossEncoder(str(make_model(1)), max_length=64)
    first = [20, 30, 10, 40, 50]
    texts = [f"Title: {corpus.paper(i).title}\nAbstract: {corpus.paper(i).abstract}" for i in first]
    scores = model.scores(queries[0].query, texts)
    assert run.retrieved[0] == [first[i] for i in np.argsort(-scores)]
    assert run.records[0].scores == pytest.approx(sorted(scores.tolist(), reverse=True))
    assert run.records[0].extra["pre_reranked"] == [20, 30, 10, 40, 50, 60]
    assert run.system == "bm25+cross-encoder:bert-1"
    assert out.name == "small.title_abstract.bm25.cross-bert-1.jsonl"


def test_what_was_scored_before_a_kill_is_not_scored_again(overrides, config, monkeypatch, tmp_path):
    asked = []
    real = CrossEncoder.scores

    def counting(self, query, texts):
        if len(asked) == 2 and not (tmp_path / "resumed").exists():
            raise KeyboardInterrupt
        asked.append(query)
        return real(self, query, texts)

    monkeypatch.setattr(CrossEncoder, "scores", counting)
    with pytest.raises(KeyboardInterrupt):
        made(config, *overrides)
    journal = tmp_path / "out" / "small.title_abstract.bm25.cross-bert-1.scores.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"query": "torn')
    (tmp_path / "resumed").touch()
    out = made(config, *overrides)
    assert len(asked) == 4
    assert len(set(asked)) == 4
    whole = made(config, *overrides, f"output_dir={tmp_path / 'whole'}")
    assert read_run(out).retrieved == read_run(whole).retrieved
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_scores_of_another_setting_or_in_use_are_refused(tmp_path):
    journal = tmp_path / "scores.jsonl"
    with ScoreJournal(journal, {"max_k": 5}) as book:
        book.add("q", np.array([1.0, 2.0], np.float32))
        with pytest.raises(InputError, match="in use by another run"):
            ScoreJournal(journal, {"max_k": 5})
    with ScoreJournal(journal, {"max_k": 5}) as book:
        assert book.scores == {"q": [1.0, 2.0]}
    with pytest.raises(InputError, match="belongs to another input"):
        ScoreJournal(journal, {"max_k": 6})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["max_k=0"], "max_k=0"),
        (["key=paragraphs"], "key=paragraphs: a cross-encoder scores"),
        (["encoder.dtype=int8"], "dtype='int8'"),
        (["encoder.max_length=0"], "max_length=0"),
        (["run=nowhere.jsonl"], "does not exist"),
    ],
)
def test_what_cannot_be_reranked_is_refused(overrides, config, more, said):
    with pytest.raises(InputError, match=said):
        made(config, *overrides, *more)
