"""The augmentations of Table 1: how much of a sentence they change, on which side, and that they can be drawn again."""

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from shared import InputError
from simcse.augment import Augmenter, MaskedLanguageModel
from simcse.batches import Collator, tokenize

TEXT = [" ".join(f"w{i}" for i in range(20)), " ".join(f"v{i}" for i in range(10)), "alone"]
EPOCH, INDEX = np.zeros(3, dtype=np.int64), np.arange(3)


def _changed(kind: str, percent: float | None = None, epoch: int = 0) -> list[list[str]]:
    return [text.split() for text in Augmenter(kind, percent=percent)(TEXT, EPOCH + epoch, INDEX, 1)]


@pytest.mark.parametrize(("percent", "kept"), [(10, (18, 9, 1)), (20, (16, 8, 1)), (30, (14, 7, 1))])
def test_crop_keeps_one_contiguous_span_of_the_stated_length(percent, kept):
    starts = set()
    for epoch in range(40):
        words = _changed("crop", percent, epoch)
        assert tuple(map(len, words)) == kept
        for text, span in zip(TEXT, words, strict=True):
            assert " ".join(span) in text
        starts.add(words[0][0])
    assert len(starts) == 20 - kept[0] + 1


@pytest.mark.parametrize(("percent", "kept"), [(10, (18, 9, 1)), (30, (14, 7, 1))])
def test_word_deletion_deletes_the_stated_share_in_order(percent, kept):
    words = _changed("word_deletion", percent)
    assert tuple(map(len, words)) == kept
    for text, rest in zip(TEXT, words, strict=True):
        places = [text.split().index(word) for word in rest]
        assert places == sorted(places)


def test_delete_one_word_deletes_one_but_never_the_last_one():
    assert tuple(map(len, _changed("delete_one_word"))) == (19, 9, 1)


def test_draws_are_the_same_for_the_same_example_and_epoch_in_any_batch():
    augment = Augmenter("crop", percent=30)
    together = augment(TEXT, EPOCH, INDEX, 1)
    assert augment(TEXT[1:2], EPOCH[1:2], INDEX[1:2], 1) == together[1:2]
    assert augment(TEXT, EPOCH + 1, INDEX, 1) != together
    assert augment(TEXT, EPOCH, INDEX, 0) != together
    assert Augmenter("crop", percent=30, seed=7)(TEXT, EPOCH, INDEX, 1) != together


def test_sides_say_which_view_changes(tiny_tokenizer, sentences, tmp_path):
    texts = sentences(8)
    rows = tokenize(texts, tiny_tokenizer, 32, tmp_path)
    plain = Collator((rows,), tiny_tokenizer, 8, 42)(list(range(8)))["input_ids"]
    for sides, changed in (("positive", (False, True)), ("both", (True, True))):
        augment = Augmenter("delete_one_word", sides=sides)
        collator = Collator((rows,), tiny_tokenizer, 8, 42, augment=augment, texts=(texts,))
        ids = collator(list(range(8)))["input_ids"]
        for view in (0, 1):
            same = torch.equal(ids[:, view], plain[:, view, : ids.shape[2]])
            assert same != changed[view]
        assert torch.equal(collator(list(range(8)))["input_ids"], ids)


WORDNET = {
    "noun": [("big_cat feline", "an animal")],
    "adj": [("big large", "of great size")],
}


def _write_wordnet(folder) -> None:
    """A WordNet database of two synsets in Princeton's file format, read by nltk's own reader."""
    suffix = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
    folder.mkdir(parents=True)
    for part, letter in suffix.items():
        data, index = "  1 licence line\n", []
        for words, gloss in WORDNET.get(part, []):
            offset = len(data)
            lemmas = words.split()
            listed = " ".join(f"{lemma} 0" for lemma in lemmas)
            data += f"{offset:08d} 00 {letter} {len(lemmas):02x} {listed} 000 | {gloss}  \n"
            index += [f"{lemma.lower()} {letter} 1 0 1 0 {offset:08d}  \n" for lemma in lemmas]
        (folder / f"data.{part}").write_text(data)
        (folder / f"index.{part}").write_text("  1 licence line\n" + "".join(sorted(index)))
        (folder / f"{part}.exc").write_text("")
    (folder / "lexnames").write_text("00\tadj.all\t3\n")
    (folder / "index.sense").write_text("")
    (folder / "cntlist.rev").write_text("")


def test_synonym_replaces_one_known_word(tmp_path, monkeypatch):
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    _write_wordnet(tmp_path / "corpora" / "wordnet")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    fresh = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
    monkeypatch.setattr(nltk.corpus, "wordnet", fresh)
    augment = Augmenter("synonym")
    changed = augment(["A Big, house", "nothing known", "one big_cat"], EPOCH, INDEX, 1)
    assert changed == ["A Large, house", "nothing known", "one feline"]


def test_synonym_without_wordnet_says_how_to_get_it(monkeypatch, tmp_path):
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    with pytest.raises(InputError, match=r"nltk\.downloader wordnet"):
        Augmenter("synonym")


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory, tiny_config, tiny_tokenizer) -> MaskedLanguageModel:
    folder = tmp_path_factory.mktemp("mlm")
    torch.manual_seed(0)
    BertForMaskedLM(tiny_config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return MaskedLanguageModel(str(folder))


def test_mlm_replaces_the_stated_share_by_samples_of_the_model(masked_lm, sentences):
    texts = [" ".join(sentences(4, seed)) for seed in range(3)]
    augment = Augmenter("mlm", percent=15, masked_lm=masked_lm)
    changed = augment(texts, EPOCH, INDEX, 1)
    for before, after in zip(texts, changed, strict=True):
        before, after = before.split(), after.split()
        assert len(before) == len(after)
        different = sum(x != y for x, y in zip(before, after, strict=True))
        assert 0 < different <= round(0.15 * len(before))
    assert augment(texts, EPOCH, INDEX, 1) == changed
    assert not any("[" in text for text in changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "shuffle"}, "augment.kind=shuffle: give one of crop"),
        ({"kind": "crop"}, "augment.percent=None"),
        ({"kind": "word_deletion", "percent": 100}, "augment.percent=100"),
        ({"kind": "crop", "percent": 10, "sides": "left"}, "augment.sides=left"),
        ({"kind": "mlm", "percent": 15}, "augment.mlm_model"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Augmenter(**options)
