"""SQuAD: the official scores, windows and their answers, the best span over windows, and a task that is learned."""

import itertools
import json

import numpy as np
import pytest
import torch

from mlm_masking.encoders import load_model
from mlm_masking.fitting import Settings
from mlm_masking.padding_free import PaddingFree
from mlm_masking.squad import finetune_squad, loss_function, padded_logits, predict_spans, prepare, span_logits
from mlm_masking.squad_metrics import exact_match, normalize_answer, squad_scores, token_f1
from mlm_masking.squad_windows import Question, best_answers, make_windows, read_questions, window_bounds
from shared import InputError

# -------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("an apple a day", "apple day"),
        ("theory of another", "theory of another"),
        ("U.S. state-of-the-art", "us stateoftheart"),
        ("the", ""),
        ("«Été»", "«été»"),
    ],
)
def test_answers_are_normalised_as_in_the_official_script(text, normalised):
    assert normalize_answer(text) == normalised


def test_f1_is_of_bags_of_words():
    assert token_f1("the cat sat", "cat sat down") == pytest.approx(2 * 2 / (2 + 3))
    assert token_f1("cat cat", "cat") == pytest.approx(2 * 1 / 3)
    assert token_f1("dog", "cat") == 0.0 and token_f1("", "cat") == 0.0
    assert exact_match("The cat.", "cat") and not exact_match("cats", "cat")


def test_scores_are_percent_and_the_best_over_gold_answers():
    golds = {"1": ["Denver Broncos", "the Broncos"], "2": ["1886"], "3": ["in May"]}
    predictions = {"1": "Broncos", "2": "1887", "3": "May"}
    scores = squad_scores(predictions, golds)
    assert scores["exact_match"] == pytest.approx(100 / 3)
    assert scores["f1"] == pytest.approx(100 * (1 + 0 + 2 / 3) / 3)


def test_every_question_needs_a_prediction_and_a_gold_answer():
    with pytest.raises(InputError, match="1 questions have no prediction"):
        squad_scores({}, {"1": ["x"]})
    with pytest.raises(InputError, match="question 1 has no gold answer"):
        squad_scores({"1": "x"}, {"1": []})
    with pytest.raises(InputError, match="no questions"):
        squad_scores({}, {})


# ------------------------------------------------------------------------------------------------------------- reading

CONTEXT = "the cat sat on the mat . a dog ran in the park ."


def official(context, *questions):
    """SQuAD's JSON with one paragraph; questions are (id, question, answer, answer_start)."""
    qas = [{"id": i, "question": q, "answers": [{"text": a, "answer_start": s}]} for i, q, a, s in questions]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]})


def test_the_official_json_and_the_hubs_parquet_give_the_same_questions(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (tmp_path / "x.json").write_text(official(CONTEXT, ("q1", "where did the dog run ?", "the park", 38)))
    row = {"id": "q1", "title": "t", "context": CONTEXT, "question": "where did the dog run ?",
           "answers": {"text": ["the park"], "answer_start": [38]}}  # fmt: skip
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    expected = [Question("q1", "where did the dog run ?", CONTEXT, (("the park", 38),))]
    assert read_questions(tmp_path / "x.json") == read_questions(tmp_path / "x.parquet") == expected


@pytest.mark.parametrize(
    ("answer", "start", "message"),
    [
        ("the park", 37, r"question q1: the answer 'the park' is not at answer_start=37.*it stands at 38"),
        ("the moon", 38, "it is not in the context at all"),
        ("", 0, "is not at answer_start=0"),
        ("the", -3, "answer_start=-3"),
    ],
)
def test_an_answer_that_is_not_where_it_says_is_refused(tmp_path, answer, start, message):
    (tmp_path / "x.json").write_text(official(CONTEXT, ("q1", "where ?", answer, start)))
    with pytest.raises(InputError, match=message):
        read_questions(tmp_path / "x.json")


def test_files_that_are_not_squad_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"data": [{"paragraphs": [{"context": "c"}]}]}')
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text('{"data": []}')
    for name, message in {
        "a.json": "not SQuAD",
        "b.json": "not SQuAD",
        "c.json": "no questions",
        "d.json": "no such",
    }.items():
        with pytest.raises(InputError, match=message):
            read_questions(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------- windows


def test_windows_overlap_by_the_stride_and_cover_the_context():
    assert window_bounds(10, 12, 4) == [(0, 10)]
    bounds = window_bounds(100, 30, 8)
    assert bounds[0] == (0, 30) and bounds[-1][1] == 100
    for (_, end), (begin, _) in itertools.pairwise(bounds):
        assert end - begin == 8
    assert window_bounds(0, 5, 2) == [(0, 0)]


def some_questions():
    context = "the river is wide . " * 6 + "the house is red . " + "a film is long . " * 6
    return [
        Question("a", "what is red ?", context, (("the house", context.index("the house")),)),
        Question("b", "what ?", CONTEXT, (("the park", 38),)),
        Question("c", "what is wide ?", context, (("the river", 0),)),
    ]


def test_targets_point_at_the_answer_or_at_the_start_token(tokenizer):
    questions = some_questions()
    windows = make_windows(tokenizer, questions, max_length=40, doc_stride=10)
    assert len(windows.rows) > 3 and windows.rows.lengths.max() <= 40
    found = {"a": 0, "b": 0, "c": 0}
    for window, (first, last) in enumerate(windows.targets):
        question = questions[windows.question[window]]
        if (first, last) == (0, 0):
            continue
        found[question.id] += 1
        text = tokenizer.decode(windows.rows[window][first : last + 1]).strip()
        assert text == question.answers[0][0]
    assert found["a"] >= 1 and found["b"] == 1 and found["c"] == 1
    heads = [windows.rows[window][: windows.first[window]].tolist() for window in range(len(windows.rows))]
    asked = tokenizer("what ?", add_special_tokens=False)["input_ids"]
    assert [0, *asked, 2, 2] in heads and all(row[-1] == 2 for row in windows.rows.rows(range(len(heads))))


def test_a_context_that_fits_is_one_window_whatever_the_stride(tokenizer):
    windows = make_windows(tokenizer, some_questions()[1:2], max_length=64, doc_stride=60)
    assert len(windows.rows) == 1


def test_lengths_without_room_for_new_context_are_refused(tokenizer):
    with pytest.raises(InputError, match="which must be more than doc_stride=30"):
        make_windows(tokenizer, some_questions(), max_length=40, doc_stride=30)
    with pytest.raises(InputError, match="doc_stride=-1"):
        make_windows(tokenizer, some_questions(), max_length=40, doc_stride=-1)


def spiked(windows, questions, spans):
    """Logits of 0 but for a start and an end: {window: (context start token, context end token, height)}."""
    logits = [np.zeros((length, 2), dtype=np.float32) for length in windows.rows.lengths]
    for window, (start, end, height) in spans.items():
        first, begin = windows.first[window], windows.tokens[window][0]
        logits[window][first + start - begin, 0] = logits[window][first + end - begin, 1] = height
    return best_answers(windows, questions, logits)


def test_the_best_span_over_all_windows_is_the_answer(tokenizer):
    questions = some_questions()[:1]
    windows = make_windows(tokenizer, questions, max_length=40, doc_stride=10)
    context, tokens = questions[0].context, windows.spans[questions[0].context]
    last = len(windows.rows) - 1
    begin = int(windows.tokens[last][0])
    answers = spiked(windows, questions, {0: (1, 2, 5.0), last: (begin + 3, begin + 4, 9.0)})
    assert answers == {"a": context[tokens[begin + 3, 0] : tokens[begin + 4, 1]]}


def test_spans_that_end_before_they_start_or_are_too_long_are_not_answers(tokenizer):
    questions = some_questions()[1:2]
    windows = make_windows(tokenizer, questions, max_length=64, doc_stride=8)
    spans = windows.spans[CONTEXT]
    length = int(windows.rows.lengths[0])
    logits = np.zeros((length, 2), dtype=np.float32)
    logits[0] = 100.0  # the start token and the question are no answers
    first = windows.first[0]
    logits[first + 5, 0], logits[first + 2, 1] = 8.0, 8.0
    logits[first + 6, 1] = 3.0
    answers = best_answers(windows, questions, [logits], n_best=20, max_answer_length=3)
    assert answers["b"] == CONTEXT[spans[5, 0] : spans[6, 1]]
    # No allowed pair among the best ones leaves the question without an answer.
    logits[:] = 0
    logits[first + 5, 0], logits[first + 2, 1] = 8.0, 8.0
    assert best_answers(windows, questions, [logits], n_best=1)["b"] == ""


# ------------------------------------------------------------------------------------------------------------ training


def test_the_loss_is_transformers_own(make_checkpoint):
    folder = make_checkpoint(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = load_model(folder, "question_answering", outputs=2, device="cpu").eval()
    rows = [np.arange(4, 4 + length).astype(np.int32) for length in (9, 9, 9)]
    targets = np.array([[2, 4], [0, 0], [8, 8]])
    batch = PaddingFree(rows, model)
    ours = loss_function(targets)(model, batch.hidden(model), batch, np.arange(3)) / 3
    ids = torch.from_numpy(np.stack(rows).astype(np.int64))
    wanted = torch.from_numpy(targets)
    theirs = model(input_ids=ids, start_positions=wanted[:, 0], end_positions=wanted[:, 1]).loss
    torch.testing.assert_close(ours, theirs)


def test_logits_are_put_back_row_by_row(checkpoint):
    model = load_model(checkpoint, "question_answering", outputs=2, device="cpu").eval()
    rows = [np.arange(4, 4 + length).astype(np.int32) for length in (9, 3, 6)]
    batch = PaddingFree(rows, model)
    padded = padded_logits(span_logits(model, batch.hidden(model)), batch)
    assert padded.shape == (3, 9, 2) and torch.isinf(padded[1, 3:]).all()
    from mlm_masking.sequences import joined

    for row, logits in enumerate(predict_spans(model, joined(rows), Settings())):
        torch.testing.assert_close(padded[row, : len(rows[row])], torch.from_numpy(logits))


def write_task(folder, count, seed):
    """What is red? The thing before `is red`: other things have other colours."""
    generator = np.random.default_rng(seed)
    things = ["the cat", "the dog", "the house", "the mat", "the river", "the park"]
    questions = []
    for number in range(count):
        order = generator.permutation(6)[:3]
        red = int(generator.integers(3))
        parts = [f"{things[thing]} is {'red' if place == red else 'wide'} ." for place, thing in enumerate(order)]
        context = " ".join(parts)
        answer = things[order[red]]
        questions.append((context, (f"q{number}", "what is red ?", answer, context.index(answer))))
    paragraphs = [json.loads(official(context, q))["data"][0]["paragraphs"][0] for context, q in questions]
    folder.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    return str(folder)


def test_a_learnable_task_is_learned(make_checkpoint, tmp_path):
    folder = make_checkpoint(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    prepared = prepare(
        folder, train=write_task(tmp_path / "train.json", 300, 0), dev=write_task(tmp_path / "dev.json", 60, 1),
        max_length=64, doc_stride=16,
    )  # fmt: skip
    settings = Settings(lr=5e-3, batch_size=16, epochs=12, weight_decay=0.0, optimizer="adamw")
    result = finetune_squad(folder, prepared, settings=settings, device="cpu", save_to=tmp_path / "kept")
    assert result["score"] == result["metrics"]["f1"] > 90
    predictions = json.loads((tmp_path / "kept" / "predictions.json").read_text())
    assert len(predictions) == 60
    golds = {one.id: one.golds for one in prepared.dev_questions}
    assert squad_scores(predictions, golds) == result["metrics"]


def test_the_command_scores_and_refuses_what_it_must(checkpoint, tmp_path, command):
    train, dev = write_task(tmp_path / "train.json", 40, 0), write_task(tmp_path / "dev.json", 10, 1)
    common = ("squad", f"ckpt={checkpoint}", f"data.train={train}", f"data.dev={dev}", f"output_dir={tmp_path}/out",
              "progress=false", "device=cpu", "epochs=1")  # fmt: skip
    status, error = command(*common)
    assert status == 2 and "max_length=384, but the model's positions hold 64 tokens: give max_length=64" in error
    assert command(*common, "max_length=64", "doc_stride=16") == (0, "")
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert metrics["f1"] == metrics["score"] and metrics["windows"]["examples"] == 40
    assert (tmp_path / "out" / "cells" / "lr3e-05-bs16-ep1" / "seed-1" / "predictions.json").is_file()
    status, error = command(*common, "max_length=64", "doc_stride=16", "data.size=41")
    assert status == 2 and "data.size=41: give 1 to 40" in error
