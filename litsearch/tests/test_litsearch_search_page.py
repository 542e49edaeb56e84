"""The search page's JSON over HTTP and its refusals, and a server process from start to a clean stop."""

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console

from litsearch.index import make_index
from litsearch.library import open_library
from litsearch.search import run
from litsearch.search_page import SearchPage
from shared import InputError
from shared.testing import answering, fetch

OWNED = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
PAPERS = [
    {"title": "Listwise reranking", "abstract": f"A model {OWNED} reranks passages.", "citations": [1, 2]},
    {"title": "Dense retrieval", "abstract": "Vectors rank passages by cosine.", "citations": [0]},
    {"title": "", "abstract": "Rhyme survives translation. " + "La la. " * 60 + "Metre survives.", "source": "p.txt"},
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    folder = tmp_path_factory.mktemp("page")
    (folder / "papers.jsonl").write_text("".join(json.dumps(paper) + "\n" for paper in PAPERS))
    options = ["data=own", f"data.corpus={folder}/papers.jsonl", f"index={folder}/index"]
    GlobalHydra.instance().clear()
    configs = Path(__file__).resolve().parents[1] / "configs"
    with hydra.initialize_config_dir(str(configs), version_base="1.3"):
        cfg = hydra.compose("index", [*options, "retriever.processes=1", "retriever.cache=false"])
    return make_index(cfg, Console(quiet=True))


@pytest.fixture(scope="module")
def server(index):
    with answering(SearchPage(open_library(index), ("127.0.0.1", 0), k=2, words=12, max_query=100)) as server:
        yield server


def get(server, path: str, **parameters):
    """Status and answer."""
    status, _, body = fetch(server.url, path, **parameters)
    return status, json.loads(body)


def test_a_question_is_answered_as_the_library_answers_it(server):
    status, answer = get(server, "api/search", query=" passages reranking? ", k=3)
    hits = server.library.search("passages reranking?", 3)
    assert status == 200 and answer["query"] == "passages reranking?" and 0 < answer["seconds"] < 60
    assert [(r["rank"], r["corpusid"], r["score"]) for r in answer["results"]] == [
        (hit.rank, hit.paper.corpusid, hit.score) for hit in hits
    ]
    first, second = answer["results"]
    assert first["title"] == [["Listwise ", False], ["reranking", True]]
    assert ["reranks", True] in first["abstract"] and first["whole"] is True
    assert (first["cites"], first["cited_by"], second["cites"], second["cited_by"]) == (2, 1, 1, 1)


def test_long_abstracts_come_cut_and_whole(server):
    _, answer = get(server, "api/search", query="metre translation")
    (found,) = answer["results"]
    assert found["whole"] is False and found["title"] == [] and found["source"] == "p.txt"
    assert "".join(text for text, _ in found["abstract"]) == PAPERS[2]["abstract"]
    assert [text for text, matches in found["snippet"] if matches] == ["translation"]


def test_texts_arrive_as_they_are(server):
    _, answer = get(server, "api/paper", id=0)
    assert answer["abstract"] == [[PAPERS[0]["abstract"], False]]


def test_a_paper_names_what_it_cites_and_what_cites_it(server):
    status, answer = get(server, "api/paper", id=0, query="dense reranking")
    assert status == 200 and answer["title"] == [["Listwise ", False], ["reranking", True]]
    assert answer["cites"] == [{"corpusid": 1, "title": "Dense retrieval"}, {"corpusid": 2, "title": ""}]
    assert answer["cited_by"] == [{"corpusid": 1, "title": "Dense retrieval"}]


def test_the_page_is_told_what_it_searches(server):
    _, answer = get(server, "api/about")
    assert (answer["papers"], answer["label"], answer["searched"]) == (3, "BM25", "titles and abstracts")
    assert answer["examples"] == ["Listwise reranking", "Dense retrieval"] and answer["k"] == 2


def test_the_page_asks_no_other_host_and_reads_no_markup(server):
    with urllib.request.urlopen(server.url, timeout=30) as response:
        page = response.read().decode()
    # The name of SVG's namespace, in the icon, is not an address that is asked for.
    assert set(re.findall(r"https?://[\w.-]+", page)) == {"http://www.w3.org"}
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", page)


@pytest.mark.parametrize(
    ("path", "parameters", "message"),
    [
        ("api/search", {}, "query is missing or empty"),
        ("api/search", {"query": " "}, "query is missing or empty"),
        ("api/search", {"query": "a" * 101}, "query has 101 characters, but at most 100"),
        ("api/search", {"query": "a", "k": 0}, "k is 0, but must be from 1 to 100"),
        ("api/search", {"query": "a", "k": "x"}, "k is 'x', but must be a whole number"),
        ("api/search", {"query": "a", "page": 2}, "unknown parameter 'page'"),
        ("api/paper", {}, "id is missing"),
        ("api/paper", {"id": 77}, "corpusid 77 is not in the corpus of 3 papers"),
    ],
)
def test_bad_parameters_are_a_400_with_one_message(server, path, parameters, message):
    status, answer = get(server, path, **parameters)
    assert status == 400 and list(answer) == ["error"] and message in answer["error"]


def test_settings_of_the_page_are_checked(index, config):
    library = open_library(index)
    with pytest.raises(InputError, match="max_query=0"):
        SearchPage(library, ("127.0.0.1", 0), max_query=0)
    with pytest.raises(InputError, match="port=99999"):
        run(config(f"index={index}", "serve=true", "port=99999", name="search"), [], Console(quiet=True))


def test_a_server_process_listens_here_only_and_stops_cleanly(index):
    command = [sys.executable, "-u", "-m", "litsearch.search", "serve=true", f"index={index}", "port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stdout if "serving on" in line)
        url = line.split("serving on ")[1].split()[0]
        assert line.startswith("3 papers") and url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{url}api/about", timeout=30) as response:
            assert json.loads(response.read())["papers"] == 3
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "stopped" in out and err == ""
