"""The project's own similarity set: well-formed, balanced, and not to be answered by counting words."""

from collections import Counter

import numpy as np
import pytest

from shared import InputError
from simcse.baselines import bag_of_words, random_vectors
from simcse.embedding import embed_sentences, load_encoder
from simcse.senteval import evaluate_pairs, load_graded_pairs


@pytest.fixture(scope="module")
def pairs():
    return load_graded_pairs()


def test_there_are_enough_pairs_balanced_over_the_scale(pairs):
    assert len(pairs) >= 220
    bins = Counter(np.minimum(pairs.gold.astype(int), 4).tolist())
    assert sorted(bins) == [0, 1, 2, 3, 4]
    assert max(bins.values()) - min(bins.values()) <= 2
    assert pairs.gold.min() == 0 and pairs.gold.max() == 5
    assert (pairs.gold > 4).sum() >= 40, "alignment needs positive pairs"


def test_no_pair_occurs_twice_and_none_is_a_sentence_with_itself(pairs):
    both = [frozenset(sentence.lower() for sentence in pair) for pair in zip(pairs.first, pairs.second, strict=True)]
    assert len(set(both)) == len(pairs)
    assert all(len(pair) == 2 for pair in both)


def test_sentences_are_sentences(pairs):
    for sentence in pairs.sentences:
        assert sentence == sentence.strip() and sentence[-1] in ".?!", sentence
        assert 3 <= len(sentence.split()) <= 25, sentence


def test_a_pre_trained_encoder_is_far_above_word_overlap(pairs):
    encoder, tokenizer = load_encoder("minilm", "avg", "cpu")
    minilm = evaluate_pairs(lambda texts: embed_sentences(encoder, tokenizer, texts), pairs)["all"]
    overlap = max(evaluate_pairs(encode, pairs)["all"] for encode in (bag_of_words, random_vectors))
    assert minilm == pytest.approx(0.815, abs=0.005)
    assert overlap == pytest.approx(0.175, abs=0.005)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score\tsentence1\n", "line 1: the header"),
        ("score\tsentence1\tsentence2\n", "no pair below the header"),
        ("score\tsentence1\tsentence2\n6\ta b\tc d\n", r"line 2: .* must be a score in 0-5"),
        ("score\tsentence1\tsentence2\n1\ta b\tc d\nx\ta b\tc d\n", "line 3: .* is not score"),
        ("score\tsentence1\tsentence2\n1\ta b\n", "line 2: .* is not score"),
        ("score\tsentence1\tsentence2\n1\ta b\t \n", "line 2: .* two sentences"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "pairs.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_graded_pairs(path)
