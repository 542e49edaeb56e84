"""Metrics to the digit; zero-shot, demonstrations, calibration and generation against the definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mezo.data import Splits
from mezo.encoding import Encoded, Encoder, Prompt
from mezo.evaluation import dev_loss, evaluate, mean_f1, scores_of
from mezo.generating import LoadedModel, continue_prompts
from mezo.metrics import accuracy, f1
from mezo.objectives import objective_for
from mezo.tasks import get_task
from shared import InputError

TEXTS = ["The film is a joy .", "holes", "The plot has holes . The plot has holes .", "a joy . No", "Yes or No ?"]


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        ("the Rome City", ["Rome", "rome city"], 1),
        ("in Rome, Italy", ["Rome"], 0.5),
        ("", ["no answer"], 0),
        ("No answer.", ["no answer"], 1),
        ("No answer at all", ["no answer"], 0),
        ("CANNOTANSWER", ["CANNOTANSWER"], 1),
        ("a b c", ["a b d", "x"], 0.5),
        ("2.5", ["25"], 1),
        ("rome rome", ["rome"], 2 / 3),
        ("the", ["a"], 0),
    ],
)
def test_f1_of_texts(text, answers, score):
    assert f1(text, answers) == pytest.approx(score)


def test_a_prediction_is_right_if_it_is_among_the_right_ones():
    assert accuracy([0, 2, 1], [(0,), (1, 2), (0, 2)]) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="1 predictions for 2 examples"):
        accuracy([0], [(0,), (1,)])
    with pytest.raises(InputError, match="no answer to compare with"):
        f1("x", [])


def sentiment(count=5):
    task = get_task("sst2")
    return [task.sample({"sentence": TEXTS[n], "label": n % 2}, f"row {n}") for n in range(count)]


def splits():
    samples = sentiment()
    return Splits(samples[:2], samples[2:3], samples, samples)


def sums_by_hand(model, example: Encoded) -> np.ndarray:
    sums = []
    for ids, option in zip(example.candidates, example.option_lens, strict=True):
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(float(logprobs[at - 1, ids[at]]) for at in range(len(ids) - option, len(ids))))
    return np.array(sums)


@pytest.mark.parametrize("calibration", ["none", "sfc", "icl_sfc"])
@pytest.mark.parametrize("num_demos", [0, 2])
@torch.no_grad()
def test_predictions_are_those_of_the_definition(tiny_models, tiny_tokenizer, calibration, num_demos):
    model, task, all_splits = tiny_models["opt"], get_task("sst2"), splits()
    encoder, right = Encoder(task, tiny_tokenizer, model_type="opt"), 0
    seeds = np.random.RandomState(0).randint(0, 10_000, 5)
    for sample, seed in zip(all_splits.test, seeds, strict=True):
        order = np.random.RandomState(seed).permutation(5)[:num_demos]
        demos = [all_splits.pool[n] for n in order]
        example = encoder.candidates(sample, demos)
        score = sums_by_hand(model, example)  # one token each: sums are means
        if calibration != "none":
            score = score - sums_by_hand(model, encoder.candidates(sample, demos, content_free=calibration))
        right += int(score.argmax()) in example.gold
    found = evaluate(
        model, tiny_tokenizer, task, all_splits.test, splits=all_splits, num_demos=num_demos, calibration=calibration
    )
    assert found == {"accuracy": right / 5, "count": 5}


@torch.no_grad()
def test_scores_do_not_depend_on_how_examples_are_batched(tiny_models, tiny_tokenizer):
    model = tiny_models["qwen2"]
    three = Encoded("three", ((0, 5, 6, 7), (0, 5, 8, 9, 4), (0, 5, 6, 9)), (1, 3, 2), (2,))
    examples = [*objective_for(get_task("sst2"), tiny_tokenizer).encode(sentiment()), three]
    together, apart = (scores_of(model, examples, batch_tokens=tokens) for tokens in (4096, 1))
    for one, other, example in zip(together, apart, examples, strict=True):
        assert np.allclose(one, other, atol=1e-5)
        assert np.allclose(one * example.option_lens, sums_by_hand(model, example), atol=1e-5)


@torch.no_grad()
def test_a_set_of_right_answers_counts_any_of_them(tiny_models, tiny_tokenizer):
    task = get_task("record")
    row = {"passage": "The film is a joy .", "query": "@placeholder was great", "entities": ["The plot", "Yes", "No"]}
    model, encoder = tiny_models["llama"], Encoder(task, tiny_tokenizer)
    best = int((sums_by_hand(model, e := encoder.candidates(task.sample({**row, "answers": ["Yes"]}, "row")))
                / e.option_lens).argmax())  # fmt: skip
    names = row["entities"]
    for answers in ([names[best], names[best - 1]], [names[best - 1]]):
        sample = task.sample({**row, "answers": answers}, "row")
        assert evaluate(model, tiny_tokenizer, task, [sample])["accuracy"] == float(names[best] in answers)


@torch.no_grad()
def test_generated_answers_end_at_a_line_break_and_are_scored(tiny_models, tiny_tokenizer):
    """Answers in a batch of different lengths are those of `generate` alone."""
    model = tiny_models["llama"]
    prompts = [Prompt(str(n), (0, *tiny_tokenizer(t, add_special_tokens=False)["input_ids"]), ("x",))
               for n, t in enumerate(TEXTS)]  # fmt: skip
    found = continue_prompts(LoadedModel(model, tiny_tokenizer), prompts, 6)
    for text, prompt in zip(found, prompts, strict=True):
        ids = torch.tensor([prompt.ids])
        new = model.generate(ids, max_new_tokens=6, do_sample=False)[0][len(prompt.ids) :]
        alone = tiny_tokenizer.decode(new, skip_special_tokens=True).split("\n")[0].strip()
        assert text.encode("ascii", "ignore") == alone.encode("ascii", "ignore")
    scored = [replace(prompt, answers=(text or "nothing",)) for prompt, text in zip(prompts, found, strict=True)]
    assert mean_f1(model, tiny_tokenizer, scored, 6) == pytest.approx(
        np.mean([f1(text, p.answers) for text, p in zip(found, scored, strict=True)])
    )


def test_a_generator_scores_candidates_as_the_model_does(tiny_models, tiny_tokenizer):
    model, task, all_splits = tiny_models["llama"], get_task("sst2"), splits()
    examples = objective_for(task, tiny_tokenizer).encode(sentiment())
    three = Encoded("three", ((0, 5, 6, 7), (0, 5, 8, 9, 4), (0, 5, 6, 9)), (1, 3, 2), (2,))
    generator = LoadedModel(model, tiny_tokenizer)
    with torch.no_grad():
        for mean in (True, False):
            ours = scores_of(model, [*examples, three], mean=mean)
            theirs = scores_of(generator, [*examples, three], mean=mean)
            assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
    assert evaluate(generator, tiny_tokenizer, task, all_splits.test) == evaluate(
        model, tiny_tokenizer, task, all_splits.test
    )


def test_the_dev_loss_is_the_objective_over_the_whole_set(tiny_models, tiny_tokenizer):
    model = tiny_models["opt"]
    for kind in ("candidates", "lm", "accuracy"):
        objective = objective_for(get_task("sst2"), tiny_tokenizer, kind=kind)
        encoded = objective.encode(sentiment())
        assert dev_loss(objective, model, encoded, batch_tokens=16) == pytest.approx(
            objective.loss(model, encoded).item(), abs=1e-6
        )


def test_evaluation_leaves_the_training_state_alone(tiny_models, tiny_tokenizer):
    model = tiny_models["opt"].train()
    evaluate(model, tiny_tokenizer, get_task("sst2"), sentiment())
    assert model.training and torch.is_grad_enabled()
    model.eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_demos": 1}, "num_demos=1: demonstrations need splits="),
        ({"num_demos": -1}, "num_demos=-1: give a whole number"),
        ({"num_demos": 9, "splits": splits()}, "num_demos=9: the training file has 5 examples"),
        ({"demos": "own"}, "demos='own' is unknown: choose per_item, shared"),
        ({"calibration": "pmi"}, "calibration='pmi' is unknown"),
        ({"samples": []}, "no example to evaluate"),
        ({"journal": "answers.jsonl"}, "answers of a model in memory are not kept"),
        ({"task": get_task("squad"), "calibration": "sfc"}, "task squad is generated; only candidates are calibrated"),
    ],
)
def test_settings_that_make_no_sense_are_named(tiny_models, tiny_tokenizer, options, message):
    options = {"task": get_task("sst2"), "samples": sentiment(), **options}
    with pytest.raises(InputError, match=message):
        evaluate(tiny_models["opt"], tiny_tokenizer, **options)
