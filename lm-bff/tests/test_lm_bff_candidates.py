"""Template, mapping and prompt files, the published formats among them."""

import pytest

from lm_bff.candidates import Candidate, candidate_at, ranked, read_candidates, write_candidates
from lm_bff.tasks import TASKS
from shared import InputError

MR, SST2, TREC, SNLI = TASKS["mr"], TASKS["sst-2"], TASKS["trec"], TASKS["snli"]


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "found.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_templates_are_read_with_and_without_scores(file):
    path = file("*cls**sent_0*_A*mask*_film.*sep+*\t1.00000\n\n*cls**sent_0*_This_is*mask*.*sep+*\n")
    first, second = read_candidates(path, "template", SST2)
    assert first == Candidate("*cls**sent_0*_A*mask*_film.*sep+*", None, 1.0)
    assert second.score is None


def test_mappings_keep_numbers_as_numbers(file):
    path = file('{0:\'bad\',1:\'good\'}\t0.9\n{"0": "awful", "1": "fine"}\n')
    assert [one.mapping for one in read_candidates(path, "mapping", MR)] == [
        {0: "bad", 1: "good"},
        {0: "awful", 1: "fine"},
    ]


def test_mappings_of_text_labels_stay_texts(file):
    path = file('{"contradiction": "Except", "entailment": "Alright", "neutral": "Watch"}\t0.83333\n')
    (only,) = read_candidates(path, "mapping", SNLI)
    assert only.mapping["entailment"] == "Alright"
    assert only.score == 0.83333


def test_prompts_are_a_template_and_a_mapping(file):
    path = file("*cls**sent_0*_It's*mask*.*sep+*\t{'0':'dead','1':'fun'}\t0.96875\n")
    (only,) = read_candidates(path, "prompt", SST2)
    assert only == Candidate("*cls**sent_0*_It's*mask*.*sep+*", {"0": "dead", "1": "fun"}, 0.96875)


@pytest.mark.parametrize(
    ("kind", "task", "text", "message"),
    [
        ("template", SST2, "ok*cls**sent_0**mask*.*sep+*\n*cls**sent_0*_no_mask.*sep+*", r"line 2.*0 \*mask\*"),
        ("template", SST2, "*cls**sent_0**mask*,*sent_1**sep+*", "asks for sentence 1"),
        ("prompt", SST2, "*cls**sent_0**mask*.*sep+*", "has no tab"),
        ("prompt", SST2, "*cls**sent_0**mask*.*sep+*\t{'0':'a','1':'b'}\t0.5\tmore", "4 columns"),
        ("mapping", SST2, "{0:'bad',1:'good'}", "texts in quotes"),
        ("mapping", MR, "{'0':'bad','1':'good'}", "numbers without quotes"),
        ("mapping", MR, "{0:'bad'}", "has the keys"),
        ("mapping", MR, "{0:'bad',1:'good'}\tbest", "not a score"),
        ("mapping", MR, "bad good", "cannot be read"),
        ("template", SST2, "\n \n", "has no templates"),
    ],
)
def test_a_line_that_does_not_fit_is_named(file, kind, task, text, message):
    with pytest.raises(InputError, match=message):
        read_candidates(file(text), kind, task)


def test_a_missing_file_and_a_number_past_the_end_are_refused(file, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_candidates(tmp_path / "none.txt", "template", SST2)
    path = file("{0:'bad',1:'good'}\n")
    assert candidate_at(path, "mapping", MR, 0).mapping[1] == "good"
    with pytest.raises(InputError, match="number 1"):
        candidate_at(path, "mapping", MR, 1)


def test_top_reads_only_the_first_lines(file):
    path = file("{0:'bad',1:'good'}\n{0:'x',1:'y'}\nnot a mapping\n")
    assert len(read_candidates(path, "mapping", MR, top=2)) == 2
    with pytest.raises(InputError, match="top=0"):
        read_candidates(path, "mapping", MR, top=0)


def test_what_is_written_is_read_again(tmp_path):
    candidates = [
        Candidate("*cls**sent_0*_It's*mask*.*sep+*", {0: "don't", 1: 'a"b'}, 0.5),
        Candidate("*cls**mask*:*+sent_0**sep+*", {0: "x", 1: "y"}, 0.25),
    ]
    path = write_candidates(tmp_path / "deep" / "prompts.txt", candidates, with_score=True)
    assert read_candidates(path, "prompt", MR) == candidates
    with pytest.raises(InputError, match="no candidate"):
        write_candidates(path, [])


def test_ranking_sorts_by_score_and_keeps_the_order_of_equals():
    candidates = [Candidate(template=name) for name in "abcd"]
    assert [one.template for one in ranked(candidates, [0.5, 0.75, 0.5, 0.75])] == ["b", "d", "a", "c"]
