"""Listwise reranking before and after the model: the prompt to the letter, and failures told apart."""

import pytest

from litsearch.data import Paper
from litsearch.rerank import Candidates, Settings
from litsearch.rerank.failures import kind_of
from litsearch.rerank.listwise import in_memory
from litsearch.rerank.prompt import document_text, messages
from shared import InputError


def test_the_prompt_is_the_benchmarks_to_the_letter():
    assert messages("Is {n} a braced question?", ["First {query}.", "Second."]) == [
        {
            "role": "system",
            "content": "You are RankGPT, an intelligent assistant that can rank papers based on their relevancy to a "
            "research query.",
        },
        {
            "role": "user",
            "content": "I will provide you with the abstracts of 2 papers, each indicated by number identifier []. \n"
            "Rank the papers based on their relevance to research question: Is {n} a braced question?.",
        },
        {"role": "assistant", "content": "Okay, please provide the papers."},
        {"role": "user", "content": "[1] First {query}."},
        {"role": "assistant", "content": "Received passage [1]."},
        {"role": "user", "content": "[2] Second."},
        {"role": "assistant", "content": "Received passage [2]."},
        {
            "role": "user",
            "content": "Search Query: Is {n} a braced question?. \n"
            "Rank the 2 papers above based on their relevance to the research query. The papers should be listed in "
            "descending order using identifiers. The most relevant papers should be listed first. The output format "
            "should be [] > [], e.g., [1] > [2]. Only respond with the ranking results, do not say any words or "
            "explain.",
        },
    ]


def test_full_papers_are_announced_as_papers():
    opening = messages("Q", ["text"], "full_paper")[1]["content"]
    assert opening == (
        "I will provide you with 1 papers, each indicated by number identifier []. \n"
        "Rank the papers based on their relevance to research question: Q."
    )
    assert len(messages("Q", ["text"] * 100)) == 204


def test_papers_are_cut_at_300_words_and_full_ones_at_10000():
    paper = Paper(1, "A title", "one\ttwo  three\n\nfour", (), "")
    assert document_text(paper, "title_abstract") == "Title: A title Abstract: one two three four"
    long = Paper(1, "A title", " ".join(f"w{i}" for i in range(1000)), (), "\n".join(f"f{i}" for i in range(20_000)))
    words = document_text(long, "title_abstract").split(" ")
    assert (len(words), words[:5], words[-1]) == (300, ["Title:", "A", "title", "Abstract:", "w0"], "w295")
    words = document_text(long, "full_paper").split(" ")
    assert (len(words), words[-1]) == (10_000, "f9999")
    with pytest.raises(InputError, match="key='paragraphs'"):
        document_text(paper, "paragraphs")


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Prompt is too long",
        "the request exceeds the available context size",
        "max_tokens is too large: 4096. This model's context length is 4096",
    ],
)
def test_what_servers_say_of_prompts_that_are_too_long(message):
    assert kind_of(f"HTTP 400: {message}") == "overflow"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("HTTP 413: payload", "overflow"),
        ("HTTP 429: rate limit: context length of the minute used up", "rate limit"),
        ("HTTP 400: invalid role", "refused"),
        ("no answer within 120 s, after 7 tries", "timeout"),
        ("HTTP 503: overloaded, after 7 tries", "server"),
        ("no connection (broken pipe), after 7 tries", "server"),
    ],
)
def test_failures_are_told_apart(error, kind):
    assert kind_of(error) == kind


def test_prompts_are_held_in_memory_a_part_at_a_time():
    groups = list(in_memory([Candidates(str(i), "q", ["x" * 10] * n) for i, n in enumerate((3, 3, 20, 1, 1))], 60))
    assert [[item.id for item in group] for group in groups] == [["0", "1"], ["2"], ["3", "4"]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parser": "exact"}, "parser='exact'"),
        ({"mode": "double"}, "mode='double'"),
        ({"key": "paragraphs"}, "key='paragraphs'"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"mode": "sliding", "window": 10, "step": 10}, "step=10"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        Settings(**settings)
