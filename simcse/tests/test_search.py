"""The library: shapes and defaults of the authors' package, exact and faiss alike, and every bad input named."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from shared import InputError
from simcse import SimCSE
from simcse.index import KEY_BLOCK, QUERY_BLOCK, SentenceIndex, exact_top_k, read_sentences, unit_rows

faiss_installed = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


@pytest.fixture
def model(tiny_encoder_folder):
    return SimCSE(str(tiny_encoder_folder), device="cpu", pooler="avg")


@pytest.fixture
def indexed(model, sentences):
    model.build_index(sentences(30))
    return model


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import simcse, sys; print([m for m in ('torch', 'transformers', 'numpy', 'faiss') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_encode_shapes_follow_the_input(model):
    assert model.encode("a dog").shape == (32,)
    assert model.encode("a dog", keepdim=True).shape == (1, 32)
    assert model.encode(["a dog"]).shape == (1, 32)
    assert model.encode(("a dog", "a cat")).shape == (2, 32)
    assert isinstance(model.encode("a dog"), torch.Tensor)
    assert isinstance(model.encode("a dog", return_numpy=True), np.ndarray)


def test_encode_normalises_unless_told_otherwise(model, sentences):
    unit, raw = model.encode(sentences(5)), model.encode(sentences(5), normalize_to_unit=False)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(5))
    assert (raw.norm(dim=1) - 1).abs().min() > 0.1
    torch.testing.assert_close(raw / raw.norm(dim=1, keepdim=True), unit)


def test_batch_size_and_order_do_not_change_vectors(model, sentences):
    texts = sentences(20)
    expected = model.encode(texts)
    torch.testing.assert_close(model.encode(texts, batch_size=3), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode(texts[::-1]).flip(0), expected, atol=1e-5, rtol=0)


def test_similarity_drops_the_axis_of_a_string(model, sentences):
    queries, keys = sentences(3), sentences(5, seed=1)
    matrix = model.similarity(queries, keys)
    assert matrix.shape == (3, 5)
    one = model.similarity(queries[1], keys[2])
    assert type(one) is float and one == pytest.approx(matrix[1, 2], abs=1e-5)
    assert model.similarity(queries[0], keys).shape == (5,)
    assert model.similarity(queries, keys[0]).shape == (3,)


def test_similarity_takes_vectors_as_keys(model, sentences):
    queries, keys = sentences(3), sentences(5, seed=1)
    vectors = model.encode(keys, return_numpy=True, normalize_to_unit=False)
    np.testing.assert_allclose(model.similarity(queries, vectors), model.similarity(queries, keys), atol=1e-5)
    assert model.similarity(queries, vectors[0]).shape == (3,)
    with pytest.raises(InputError, match=r"keys has shape \(5, 31\), but this model's vectors have 32 columns"):
        model.similarity(queries, vectors[:, :31])


def test_search_gives_sentence_and_cosine_best_first(indexed, sentences):
    texts = sentences(30)
    found = indexed.search(texts[7], threshold=-1, top_k=30)
    assert found[0] == (texts[7], pytest.approx(1, abs=1e-5))
    cosines = dict(zip(texts, indexed.similarity(texts[7], texts), strict=True))
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    for sentence, score in found:
        assert score == pytest.approx(cosines[sentence], abs=1e-5)
    assert {sentence for sentence, _ in found} == set(texts)


def test_threshold_and_top_k_bound_the_result(indexed, sentences):
    query = sentences(1, seed=2)[0]
    everything = indexed.search(query, threshold=-1, top_k=30)
    middle = everything[10][1]
    assert indexed.search(query, threshold=middle, top_k=30) == everything[:11]
    assert indexed.search(query, threshold=-1, top_k=4) == everything[:4]
    assert indexed.search(query, threshold=1) == []


def test_a_list_of_queries_gives_a_list_of_results(indexed, sentences):
    queries = sentences(3, seed=2)
    together = indexed.search(queries, threshold=-1, top_k=3)
    for query, found in zip(queries, together, strict=True):
        alone = indexed.search(query, threshold=-1, top_k=3)
        assert [s for s, _ in found] == [s for s, _ in alone]
    assert len(indexed.search(queries[:1])) == 1


def test_scores_are_python_floats_that_json_can_hold(indexed, sentences):
    found = indexed.search(sentences(2), threshold=0)
    assert json.loads(json.dumps(found))[0][0][0] == sentences(1)[0]


def test_equal_scores_come_in_the_order_of_the_index():
    vectors = unit_rows(np.array([[1, 1], [1, 0], [1, 1], [1, 1]], dtype=np.float32))
    index = SentenceIndex(["a", "b", "c", "d"], vectors, vectors[0], "avg")
    found = index.search(vectors[:1], threshold=-1, top_k=4)[0]
    assert [sentence for sentence, _ in found] == ["a", "c", "d", "b"]


def test_the_callers_list_stays_as_it_is(model, sentences):
    mine, more = sentences(5), sentences(5, seed=1)
    model.build_index(mine)
    model.add_to_index(more)
    assert len(mine) == 5 and len(more) == 5 and len(model.index) == 10
    mine.clear()
    assert model.search(more[3], top_k=1)[0][0] == more[3]


def test_added_sentences_are_found_as_if_built_in(model, sentences):
    texts = sentences(12)
    model.build_index(texts)
    expected = model.search(texts[11], threshold=-1, top_k=12)
    model.build_index(texts[:6])
    model.add_to_index(texts[6:])
    found = model.search(texts[11], threshold=-1, top_k=12)
    assert [s for s, _ in found] == [s for s, _ in expected]
    np.testing.assert_allclose([c for _, c in found], [c for _, c in expected], atol=1e-5)


def test_a_string_is_the_path_of_a_file(model, tmp_path, caplog):
    file = tmp_path / "sentences.txt"
    file.write_text("a dog runs\n\n  two cats  \r\n")
    model.build_index(str(file))
    assert model.index.sentences == ["a dog runs", "two cats"]
    assert "1 blank lines dropped" in caplog.text
    model.add_to_index(file)
    assert len(model.index) == 4


@faiss_installed
@pytest.mark.parametrize("fast", [False, True])
def test_faiss_finds_what_exact_search_finds(model, sentences, fast):
    texts, queries = sentences(200), sentences(10, seed=3)
    model.build_index(texts[:150])
    model.add_to_index(texts[150:])
    expected = model.search(queries, threshold=-1, top_k=6)
    model.num_cells_in_search = model.num_cells  # visiting every cell, an inverted file is exact as well
    model.build_index(texts[:150], use_faiss=True, faiss_fast=fast)
    model.add_to_index(texts[150:])
    found = model.search(queries, threshold=-1, top_k=6)
    for ours, exact in zip(found, expected, strict=True):
        assert [s for s, _ in ours] == [s for s, _ in exact]
        assert all(type(score) is float for _, score in ours)
        np.testing.assert_allclose([c for _, c in ours], [c for _, c in exact], atol=1e-5)


@faiss_installed
def test_too_few_sentences_for_the_cells_use_fewer(model, sentences, caplog):
    model.build_index(sentences(100), use_faiss=True, faiss_fast=True)
    assert "100 sentences train 2 cells, not num_cells=100" in caplog.text
    assert model.search(sentences(1), top_k=1)[0][0][0] == sentences(1)[0]


def test_exact_top_k_over_many_blocks_equals_a_full_sort():
    rng = np.random.default_rng(0)
    keys = unit_rows(rng.standard_normal((KEY_BLOCK + 700, 8), dtype=np.float32))
    queries = unit_rows(rng.standard_normal((QUERY_BLOCK + 3, 8), dtype=np.float32))
    scores, rows = exact_top_k(queries, keys, 9)
    order = np.argsort(-scores, axis=1)
    full = queries @ keys.T
    np.testing.assert_allclose(np.take_along_axis(scores, order, 1), -np.sort(-full, axis=1)[:, :9], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(full, rows, 1), scores, atol=1e-6)


def test_a_saved_index_answers_the_same_from_a_memory_map(indexed, tiny_encoder_folder, sentences, tmp_path):
    queries = sentences(4, seed=5)
    expected = indexed.search(queries, threshold=-1)
    indexed.save_index(tmp_path / "index")
    again = SimCSE(str(tiny_encoder_folder), device="cpu", pooler="avg")
    again.load_index(tmp_path / "index")
    assert isinstance(again.index.vectors, np.memmap)
    assert again.search(queries, threshold=-1) == expected
    again.add_to_index(["a new sentence\nof two lines"])
    again.save_index(tmp_path / "index")  # over the files that are mapped
    indexed.load_index(tmp_path / "index")
    assert len(indexed.index) == 31 and indexed.search("a new sentence\nof two lines")[0][0].endswith("lines")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_another_pooler_cannot_use_the_index(indexed, tmp_path):
    indexed.save_index(tmp_path / "index")
    indexed.pooler = "cls_before_pooler"
    for use in (
        lambda: indexed.add_to_index(["a"]),
        lambda: indexed.search("a"),
        lambda: indexed.load_index(tmp_path / "index"),
    ):
        with pytest.raises(InputError, match="pooler is 'cls_before_pooler', but the index was built with 'avg'"):
            use()
    assert len(indexed.index) == 30


def test_other_weights_cannot_use_the_index(indexed, tmp_path):
    indexed.save_index(tmp_path / "index")
    with torch.no_grad():
        for parameter in indexed.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for use in (
        lambda: indexed.add_to_index(["a"]),
        lambda: indexed.search("a"),
        lambda: indexed.load_index(tmp_path / "index"),
    ):
        with pytest.raises(InputError, match="the model is not the one the index was built with"):
            use()


def test_another_dimension_is_refused(indexed):
    with pytest.raises(InputError, match="vectors of 16 numbers, but the index of 32"):
        indexed.index.check_encoder(np.ones(16, np.float32), "avg")


def test_damaged_and_foreign_folders_are_refused(indexed, tmp_path):
    with pytest.raises(InputError, match=r"index\.json is missing"):
        indexed.load_index(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is not an index: give another folder"):
        indexed.save_index(tmp_path / "mine")
    indexed.save_index(tmp_path / "index")
    lines = (tmp_path / "index" / "sentences.jsonl").read_text().splitlines()
    (tmp_path / "index" / "sentences.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match="is damaged"):
        indexed.load_index(tmp_path / "index")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode([]), "sentence is empty"),
        (lambda m: m.encode(["a", 3]), r"sentence\[1\] is 3 \(int\)"),
        (lambda m: m.encode("a", batch_size=0), "batch_size is 0"),
        (lambda m: m.encode("a", max_length=1000), "max_length is 1000, but the model has 64 positions"),
        (lambda m: m.similarity([], ["a"]), "sentence is empty"),
        (lambda m: m.build_index([]), "sentences_or_file_path is empty"),
        (lambda m: m.build_index(["a", None]), r"sentences_or_file_path\[1\] is None"),
        (lambda m: m.build_index("a sentence, not a path"), "a string is the PATH of a file"),
        (lambda m: m.build_index(["a"], faiss_fast=True), "give use_faiss=True"),
        (lambda m: m.search([]), "queries is empty"),
        (lambda m: m.search([1]), r"queries\[0\] is 1 \(int\)"),
        (lambda m: m.search("a", top_k=0), "top_k is 0"),
        (lambda m: m.search("a", top_k=31), "top_k is 31, but the index holds 30 sentences"),
        (lambda m: m.search("a", top_k=2.0), r"top_k is 2\.0"),
        (lambda m: m.search("a", threshold=1.5), r"threshold is 1\.5"),
        (lambda m: m.search("a", threshold=float("nan")), "threshold is nan"),
        (lambda m: setattr(m, "pooler", "mean"), "'mean'"),
    ],
)
def test_bad_input_is_named(indexed, call, message):
    with pytest.raises(InputError, match=message):
        call(indexed)


def test_everything_that_needs_an_index_says_so(model, tmp_path):
    for name, use in {
        "search": lambda: model.search("a"),
        "add_to_index": lambda: model.add_to_index(["a"]),
        "save_index": lambda: model.save_index(tmp_path / "index"),
    }.items():
        with pytest.raises(InputError, match=f"{name} needs an index: call build_index first"):
            use()


def test_faiss_asked_for_and_missing_is_said_before_encoding(model, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "faiss" else found(name, *rest))
    monkeypatch.setattr(model, "encode", lambda *_, **__: pytest.fail("encoded first"))
    with pytest.raises(InputError, match="faiss is asked for, but is not installed"):
        model.build_index(["a"], use_faiss=True)


def test_bad_files_name_the_line(tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("fine\nna\xefve\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt, line 2 is not UTF-8"):
        read_sentences(file)
    file.write_text("\n\n")
    with pytest.raises(InputError, match="holds no sentence"):
        read_sentences(file)


def test_bad_cells_are_refused_at_once(tiny_encoder_folder):
    with pytest.raises(InputError, match="num_cells is 0"):
        SimCSE(str(tiny_encoder_folder), num_cells=0)
    with pytest.raises(InputError, match="backend is 'annoy'"):
        SentenceIndex.check_backend("annoy")


@pytest.mark.parametrize(("name", "pooler"), [("my-unsup-bert", "cls_before_pooler"), ("my-sup-bert", "cls")])
def test_an_unmarked_checkpoint_follows_the_releases_rule(name, pooler, tiny_encoder_folder, tmp_path):
    import shutil

    folder = tmp_path / name
    shutil.copytree(tiny_encoder_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["simcse"]
    (folder / "config.json").write_text(json.dumps(config))
    assert SimCSE(str(folder), device="cpu").pooler == pooler
