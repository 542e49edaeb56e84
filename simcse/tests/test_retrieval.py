"""The retrieval task: which documents enter it, and how recall counts."""

import numpy as np
import pytest

from shared import InputError
from shared.corpus import Document
from simcse.baselines import bag_of_words, random_vectors
from simcse.retrieval import RetrievalTask, corpus_task, recall_at_k
from simcse.text_sources import is_held_out


def document(number: int, summary: str | None = None, text: str | None = None) -> Document:
    body = " ".join(f"word{number}x{i}" for i in range(30))
    return Document(
        text=text or body,
        title=f"module.f{number}",
        summary=summary or f"Return the value of thing number{number}.",
        origin=f"package:module.f{number}",
        kind="docstring",
        package="package",
    )


def test_only_held_out_documents_with_a_summary_and_a_body_are_asked_about():
    source = [document(n) for n in range(200)]
    source += [document(300 + n, summary="Too short.") for n in range(50)]
    source += [document(400 + n, text="no body") for n in range(50)]
    held_out = [d for d in source[:200] if is_held_out(d)]
    task = corpus_task(len(held_out), source)
    assert task.summaries == [d.summary for d in held_out] and task.bodies == [d.text for d in held_out]
    with pytest.raises(InputError, match=rf"retrieval\.documents={len(held_out) + 1}"):
        corpus_task(len(held_out) + 1, source)


def test_a_body_that_contains_its_summary_is_left_out():
    summary = "Return the sum of all the values."
    source = [document(n, summary=f"{summary} {n}", text=f"{summary} {n} " + "word " * 30) for n in range(100)]
    with pytest.raises(InputError, match="holds 0 suitable"):
        corpus_task(2, source)


def test_recall_counts_the_own_body_among_the_k_nearest():
    task = RetrievalTask(["a", "b", "c"], ["A", "B", "C"])
    vectors = {"a": [1, 0], "A": [1, 0], "b": [1, 0.1], "B": [0, 1], "c": [-1, 0], "C": [-1, 0.1]}
    recall = recall_at_k(lambda texts: np.array([vectors[t] for t in texts]), task, cutoffs=(1, 2, 3))
    assert recall == pytest.approx({"recall_at_1": 2 / 3, "recall_at_2": 1.0, "recall_at_3": 1.0})


def test_a_collapsed_encoder_finds_nothing():
    task = RetrievalTask(["a", "b"], ["A", "B"])
    assert recall_at_k(lambda texts: np.ones((len(texts), 3)), task, cutoffs=(1,)) == {"recall_at_1": 0.0}


def test_baselines_are_deterministic_and_see_word_overlap():
    sentences = ["The cat sat on the mat", "the cat sat", "quantum field theory", ""]
    for encode in (bag_of_words, random_vectors):
        vectors = encode(sentences)
        assert vectors.dtype == np.float32 and np.array_equal(vectors, encode(sentences))
        assert vectors[0] @ vectors[1] > abs(vectors[0] @ vectors[2])
        assert not vectors[3].any()
    assert bag_of_words(["b a b"]).sum() == 3
