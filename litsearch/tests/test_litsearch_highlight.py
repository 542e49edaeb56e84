"""Which words of a text stand for a question, and where a long text is cut."""

import pytest

from litsearch.highlight import Matches, matched_words


def marked(question: str, text: str) -> list[str]:
    pieces = Matches(question).pieces(text)
    assert "".join(piece for piece, _ in pieces) == text
    return [piece for piece, is_match in pieces if is_match]


@pytest.mark.parametrize(
    ("question", "text", "words"),
    [
        ("reranking", "It reranks; a RERANKER reranked. Ranking, no.", ["reranks", "RERANKER", "reranked"]),
        ("Which of the models?", "The model of which we speak models.", ["model", "models"]),
        ("one-hop expanding", "One-hop: they expanded one hop.", ["One-hop", "expanded", "one", "hop"]),
        ("citation graphs", "citation-based, graph/tree", ["citation", "graph"]),
        ("GPT-4o in 2024", "GPT-4o (2024), GPT-4", ["GPT-4o", "2024", "GPT"]),
        ("naïve Bayes", "NAÏVE bayes und Straße", ["NAÏVE", "bayes"]),
        ("don't", "It doesn't and don't. T", []),
        ("<b>bold</b>", "<b>bold</b> & bold", ["bold", "b", "bold"]),
        ("title abstract", "Title: an abstract", ["Title", "abstract"]),
        ("?!...", "What?! No...", []),
        ("", "anything", []),
    ],
)
def test_words_match_by_their_stems_and_keep_their_form(question, text, words):
    assert marked(question, text) == words


def test_letters_that_change_their_number_in_lower_case_do_not_shift_what_is_marked():
    assert marked("cosine", "İİİ cosines İ cosine") == ["cosines", "cosine"]


LONG = (
    "We begin with words that nobody asks for and go on for a while. " * 5
    + "Cosine ranks the passages. Then other things follow at length. " * 1
    + "And more of them come, one cosine among them. " * 5
)


def test_a_snippet_begins_at_the_sentence_where_most_of_the_question_is():
    pieces = Matches("Which passages does cosine rank?").snippet(LONG, 12)
    text = "".join(piece for piece, _ in pieces)
    assert text.startswith("… Cosine ranks the passages. Then") and text.endswith(" …")
    assert len(text.split()) == 12 + 2
    assert [piece for piece, is_match in pieces if is_match] == ["Cosine", "ranks", "passages"]


def test_without_matches_a_snippet_is_the_beginning():
    text = "".join(piece for piece, _ in Matches("zebra").snippet(LONG, 7))
    assert text == "We begin with words that nobody asks …"


def test_matches_at_the_very_end_are_shown():
    text = "word " * 100 + "zebra"
    pieces = Matches("zebra").snippet(text, 10)
    assert pieces[0] == ("… ", False) and pieces[-1] == ("zebra", True)


def test_a_text_that_fits_is_shown_whole():
    assert Matches("b").snippet("a b\nc", 3) == [("a ", False), ("b", True), ("\nc", False)]
    assert Matches("b").snippet("", 3) == []


def test_matched_words_are_told_once_with_the_most_frequent_first():
    assert matched_words(Matches("rank papers").pieces("Papers rank; ranked papers rank")) == [
        "rank",
        "Papers",
        "ranked",
        "papers",
    ]
