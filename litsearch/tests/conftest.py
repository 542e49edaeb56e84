"""Shared by this folder's tests: a few papers that are always there, the real small corpus, composed configurations."""

import json
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

import shared.launch  # noqa: F401 (puts the shared configurations on Hydra's search path)
from litsearch.data import Corpus, Paper, Query, load_corpus, load_queries
from litsearch.runs import Run, RunRecord, run_metadata, write_run

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# Written for these tests: six papers whose topics differ, one without text, with citations between them.
PAPERS = [
    Paper(10, "Retrieval of scientific papers", "We rank papers for questions of researchers.", (30, 40)),
    Paper(20, "Parsing with few examples", "A parser learns from ten annotated sentences.", ()),
    Paper(30, "Dense encoders for search", "Dense vectors rank passages by their cosine.", (10, 20, 50)),
    Paper(40, "Translating poetry", "Rhyme and metre survive in neural translation.", (10,)),
    Paper(50, "", "", ()),
    Paper(60, "A benchmark of poetry questions", "Questions about poems, written by hand.", (40, 99)),
]
QUERIES = [
    Query("inline_acl", "Which papers rank papers for researchers?", 0, 2, (10, 30)),
    Query("inline_nonacl", "How does a parser learn from ten sentences?", 1, 1, (20,)),
    Query("manual_acl", "Does neural translation keep rhyme and metre?", 1, 2, (40,)),
    Query("manual_iclr", "What ranks passages by cosine?", 0, 1, (30,)),
]


@pytest.fixture(autouse=True)
def runs_elsewhere(tmp_path, monkeypatch):
    """Nothing a test runs is written into the checkout."""
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def corpus():
    return Corpus(list(PAPERS))


@pytest.fixture
def queries():
    return list(QUERIES)


@pytest.fixture
def corpus_file(tmp_path):
    """The six papers as a JSON-lines file in the release's format."""
    return write_jsonl(
        tmp_path / "corpus_clean.jsonl",
        [
            {
                "corpusid": p.corpusid,
                "title": p.title,
                "abstract": p.abstract,
                "citations": list(p.citations),
                "full_paper": p.full_paper,
            }
            for p in PAPERS
        ],
    )


@pytest.fixture
def query_file(tmp_path):
    """The four questions as a JSON-lines file in the release's format."""
    fields = ("query_set", "query", "specificity", "quality")
    records = [{name: getattr(q, name) for name in fields} | {"corpusids": list(q.corpusids)} for q in QUERIES]
    return write_jsonl(tmp_path / "query.jsonl", records)


@pytest.fixture
def run_file(tmp_path, corpus, queries):
    """A run of the four questions over the six papers."""
    found = [[20, 30, 10, 40, 50, 60], [10, 30, 40, 50, 60, 20], [60, 50, 40], [20]]
    records = [RunRecord(query, retrieved) for query, retrieved in zip(queries, found, strict=True)]
    metadata = run_metadata(corpus, queries, stages=["bm25"], key="title_abstract")
    return write_run(tmp_path / "small.title_abstract.bm25.jsonl", Run(records, metadata))


@pytest.fixture
def run_overrides(run_file, corpus_file, query_file, tmp_path):
    """What a command that goes on from this run is told."""
    data = ["data=files", f"data.corpus={corpus_file}", f"data.queries={query_file}"]
    return [*data, f"run={run_file}", f"output_dir={tmp_path / 'out'}"]


@pytest.fixture
def jsonl():
    """jsonl(path, records) writes a JSON-lines file."""
    return write_jsonl


@pytest.fixture
def config():
    """config("key=full_paper", name="config") -> the composed configuration of an entrypoint."""

    def compose(*overrides: str, name: str = "config"):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra.compose(name, overrides=list(overrides))

    return compose


@pytest.fixture(scope="session")
def mini_corpus(mirror) -> Corpus:
    """7,636 real papers; for tests marked `mirror`."""
    return load_corpus(_mini(mirror) / "corpus_clean.jsonl")


@pytest.fixture(scope="session")
def mini_queries(mirror, mini_corpus) -> list[Query]:
    """136 real questions; for tests marked `mirror`."""
    return load_queries(_mini(mirror) / "query.jsonl", mini_corpus)


@pytest.fixture(scope="session")
def mini_bm25(mini_corpus):
    """BM25 over titles and abstracts of the real papers."""
    from litsearch.bm25 import BM25
    from litsearch.keys import Keys

    return BM25(Keys(mini_corpus.papers))


def _mini(mirror: Path) -> Path:
    folder = mirror / "litsearch"
    if not (folder / "corpus_clean.jsonl").is_file():
        pytest.skip(f"{folder} has no corpus_clean.jsonl")
    return folder


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
