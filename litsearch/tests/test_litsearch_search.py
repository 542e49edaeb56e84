"""Searching one's own papers from the terminal: results, questions with any characters, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from litsearch.index import make_index
from litsearch.library import open_library
from litsearch.search import is_setting, plain, run, split_command_line
from shared import InputError

ROOT = Path(__file__).resolve().parents[2]
PAPERS = [
    {"corpusid": 7, "title": "Listwise reranking", "abstract": "A language model reranks passages.", "citations": [9]},
    {"corpusid": 9, "title": "Dense retrieval", "abstract": "Vectors rank passages by cosine.", "citations": [7, 9, 1]},
    {"corpusid": 12, "title": "Poetry", "abstract": "Rhyme & <i>metre</i> survive\x1b[31m translation. " + "La. " * 99},
    {"corpusid": 15, "title": "", "abstract": "", "full_paper": "A title of its own\n\nMetaphors are parsed by hand."},
]
TEXTS = {
    "reranking.txt": "Reranking of papers\n\nAbstract\nA model reranks.\n\n1 Introduction\n\n"
    "Long lists are cut into windows that slide from the bottom to the top of the ranking.\n\n"
    "In the end the best ten papers of all windows are found in the first one of them.",
    "notes/poetry.md": "# Poetry\n\nRhyme and metre survive the neural translation of verses into other languages.",
}


@pytest.fixture(scope="module")
def module_config():
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    def compose(name: str, *overrides: str):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(ROOT / "litsearch" / "configs"), version_base="1.3"):
            return hydra.compose(name, list(overrides))

    return compose


@pytest.fixture(scope="module")
def papers_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "papers.jsonl"
    path.write_text("".join(json.dumps(paper) + "\n" for paper in PAPERS))
    return path


@pytest.fixture(scope="module")
def texts_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def index_of(module_config, tmp_path_factory):
    """index_of(papers, *overrides) is the folder of an index of own papers."""

    def make(papers: Path, *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("index") / "index"
        options = ["data=own", f"data.corpus={papers}", f"index={folder}", *overrides]
        if not any(option.startswith("retriever=") for option in overrides):
            options += ["retriever.processes=1", "retriever.cache=false"]
        return make_index(module_config("index", *options), Console(quiet=True))

    return make


@pytest.fixture(scope="module")
def index(index_of, papers_file):
    return index_of(papers_file)


@pytest.fixture
def ask(module_config, capsys):
    """ask(questions, *overrides) is the terminal's output."""

    def ask(questions: list[str], *overrides: str, width: int = 100) -> str:
        run(module_config("search", *overrides), questions, Console(width=width))
        return capsys.readouterr().out

    return ask


# -------------------------------------------------------------------------------------------------------- the question


@pytest.mark.parametrize(
    "question",
    [
        "Which papers rank passages by cosine?",
        'What does "list-wise" mean, and (why) {not} [pointwise]?',
        "x=5 or x=7, which is better?",
        "it's $5 ${oc.env:HOME} \\ % ~ @ !",
        "~1% better?",
        "k-means",
        "Was heißt 'Ähnlichkeit'?",
        "a = b",
        "",
    ],
)
def test_what_is_no_setting_is_a_question_as_it_was_typed(question):
    words = ["index=my index", question, "k=3", "+snippet=9", "retriever@retriever.parts.dense=e5", "output=json"]
    settings, questions = split_command_line(words)
    assert questions == [question]
    assert settings == [words[0], *words[2:]]


def test_a_question_that_looks_like_a_setting():
    assert split_command_line(["query=k=5, or k=10?", "k=1"]) == (["k=1"], ["k=5, or k=10?"])
    assert split_command_line(["k=1", "--", "k=5", "--help"]) == (["k=1"], ["k=5", "--help"])
    assert split_command_line(["--cfg", "job", "--help", "one", "two"]) == (["--cfg", "job", "--help"], ["one", "two"])
    assert is_setting("kk=3")  # a mistyped name: Hydra says what it may have been
    assert is_setting("index=a folder with spaces") and not is_setting("lr=1 or lr=2")


def test_hydra_never_sees_a_question(index):
    question = 'Rhyme, "metre" = ${x} {or} (not)? \\'
    command = [sys.executable, "-m", "litsearch.search", question, f"index={index}", "k=1", "output=json"]
    done = subprocess.run([*command, "query='passages'"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["question"], second["question"]) == (question, "'passages'")
    assert [found["corpusid"] for found in first["results"]] == [12]


# ---------------------------------------------------------------------------------------------------------- the answers


def test_a_file_of_own_papers_is_searched(ask, index):
    out = ask(["reranking passages"], f"index={index}")
    lines = [line.rstrip() for line in out.splitlines() if line.strip()]
    assert lines[0] == "reranking passages"
    assert lines[1] == "  1  Listwise reranking" and lines[2] == "     A language model reranks passages."
    assert lines[3].startswith("     BM25 ") and lines[3].endswith(" · corpusid 7")
    assert lines[4] == "  2  Dense retrieval"
    assert "Poetry" not in out  # it has no word of the question


def test_a_folder_of_texts_is_searched_and_each_file_is_named(ask, index_of, texts_folder):
    out = ask(["rhyme in verses"], f"index={index_of(texts_folder)}")
    assert "Poetry" in out and "notes/poetry.md" in out and "reranking.txt" not in out


def test_paragraphs_show_the_passage_that_matches(index_of, texts_folder, papers_file):
    library = open_library(index_of(texts_folder, "key=paragraphs"))
    hit = library.search("Which windows slide?", k=5)[0]
    assert hit.paper.title == "Reranking of papers" and hit.text.startswith("Long lists are cut")
    assert library.search("the best ten", k=5)[0].text.startswith("In the end")
    assert len(library.search("windows", k=5)) == 1  # one hit for both of its paragraphs
    library = open_library(index_of(papers_file, "key=full_paper"))
    assert library.search("metaphors", k=1)[0].text == PAPERS[3]["full_paper"]


def test_matches_are_bold_in_their_own_form(module_config, index, capsys):
    run(module_config("search", f"index={index}"), ["reranking"], Console(force_terminal=True, width=100))
    out = capsys.readouterr().out
    assert "\x1b[1;33mreranks\x1b[0m" in out and "\x1b[1;33mreranking\x1b[0m" in out
    assert "\x1b[1;33mpassages" not in out


def test_papers_do_not_command_the_terminal(ask, index):
    out = ask(["metre"], f"index={index}")
    assert "\x1b" not in out and "<i>metre</i> survive [31m translation." in out
    assert plain("a\x07\x9b\ud800b\n") == "a  ?b\n"


def test_json_holds_what_the_terminal_shows(ask, index):
    lines = ask(["reranking", "zebra"], f"index={index}", "output=json", "snippet=2").splitlines()
    first, second = map(json.loads, lines)
    (found,) = first["results"]
    assert (found["rank"], found["corpusid"], found["title"]) == (1, 7, "Listwise reranking")
    assert found["abstract"] == PAPERS[0]["abstract"] and found["matches"] == ["reranking", "reranks"]
    assert found["snippet"] == "… reranks passages." and found["score"] > 0 and found["source"] == ""
    assert second == {"question": "zebra", "seconds": second["seconds"], "results": []}


def test_nothing_but_answers_goes_to_standard_output(ask, index, capsys, monkeypatch):
    import logging

    # What Hydra sets up; handlers that earlier tests have left write to streams that are closed.
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stdout)])
    first = ask(["passages"], f"index={index}", "output=json")
    logging.getLogger("litsearch").warning("half of the vectors are zero")
    json.loads(first)
    assert capsys.readouterr() == ("", "half of the vectors are zero\n")


def test_nothing_found_is_said(ask, index):
    assert "nothing: no paper of 4 has a word of it" in ask(["zebra"], f"index={index}")
    assert "nothing" in ask(["?!"], f"index={index}")


def test_k_bounds_the_results_and_may_exceed_the_corpus(index):
    library = open_library(index)
    assert len(library.search("passages", k=1)) == 1
    assert len(library.search("passages rhyme hand", k=1000)) == 4


def test_questions_come_from_a_file_too(ask, index, tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("rhyme?\n\n  cosine = ?\n")
    lines = ask(["passages"], f"index={index}", f"questions={file}", "output=json").splitlines()
    assert [json.loads(line)["question"] for line in lines] == ["passages", "rhyme?", "cosine = ?"]


def test_a_dense_index_finds_what_shares_no_word(index_of, papers_file):
    library = open_library(index_of(papers_file, "retriever=random"))
    assert len(library.search("zebra", k=3)) == 3 and library.about()["score"] == "cosine"


def test_citations_lead_both_ways_inside_the_corpus(index):
    library = open_library(index)
    seven, nine = library.corpus.paper(7), library.corpus.paper(9)
    assert library.cites(seven) == [nine] and library.cites(nine) == [seven]  # neither itself nor what is not there
    assert library.cited_by(seven) == [nine] and library.cited_by(library.corpus.paper(12)) == []
    assert library.about()["citations"] and library.about()["papers"] == 4


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("questions", "overrides", "message"),
    [
        ([], [], "there is no question"),
        (["a", " \t"], [], "question 2 of 2 is empty"),
        (["a"], ["k=0"], "k=0: give a whole number of at least 1"),
        (["a"], ["k=two"], "k='two': give a whole number"),
        (["a"], ["snippet=0"], "snippet=0"),
        (["a"], ["output=xml"], "output=xml: give text or json"),
        (["a"], ["questions=nowhere.txt"], "questions=nowhere.txt cannot be read"),
        (["a"], ["index=null"], "index is missing: give an index's folder"),
        (["a"], ["index=nowhere"], "index=nowhere does not exist .*litsearch.index"),
        (["a"], ["index=/"], "is not an index: it has no metadata.json"),
        (["a"], ["serve=true"], "leave the question out"),
        (["a"], ["key=paragraphs"], "was made with key='title_abstract', but key='paragraphs' is asked for"),
        (["a"], ["retriever=random"], "was made with retriever='bm25', but retriever='random' is asked for"),
        (["a"], ["retriever=bm25", "retriever.b=0.4"], "was made with b=0.75, but b=0.4 is asked for"),
    ],
)
def test_what_cannot_be_done_is_told(module_config, index, questions, overrides, message):
    cfg = module_config("search", f"index={index}", *overrides)
    with pytest.raises(InputError, match=message):
        run(cfg, questions, Console(quiet=True))


def test_an_index_of_other_papers_is_refused(module_config, index, papers_file, texts_folder):
    def search(corpus):
        run(
            module_config("search", f"index={index}", "data=own", f"data.corpus={corpus}"), ["a b"], Console(quiet=True)
        )

    search(papers_file)
    with pytest.raises(InputError, match="was made with corpus="):
        search(texts_folder)


def test_half_an_index_is_refused(index_of, papers_file):
    folder = index_of(papers_file)
    (folder / "owners.npy").unlink()
    with pytest.raises(InputError, match=r"owners.npy cannot be read .*make the index again"):
        open_library(folder)


def test_refusals_end_with_status_2_and_one_message(index):
    command = [sys.executable, "-m", "litsearch.search"]
    for words, message in (
        (["a question", f"index={index}", "k=0"], "error: k=0"),
        (["a question", f"indx={index}"], "Did you mean index?"),
    ):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
        assert done.stdout == ""
