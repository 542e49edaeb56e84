"""Trials: losses, the optimiser, selection on dev, what is averaged, and what is refused."""

import dataclasses
import json
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lm_bff import training
from lm_bff.batches import collate, length_batches, outputs_of
from lm_bff.data import Example
from lm_bff.optimizer import adamw, linear_decay
from lm_bff.regression import mixture, predicted_scores, regression_loss
from lm_bff.settings import TrialSettings, digest
from lm_bff.tasks import TASKS
from lm_bff.template import Rendered
from lm_bff.training import Trial, keep, restore, run_trial
from shared import InputError

QUICK = {"lr": 3e-3, "batch_size": 8, "max_steps": 20, "eval_every": 5, "num_sample": 2}
STSB_LOGITS = torch.tensor([[-0.82707, -0.75462], [-1.22016, 0.84364]])
STSB_SCORES = torch.tensor([3.2, 0.0])


# --------------------------------------------------------------------------------------------------------- regression


def test_losses_and_scores_of_the_release():
    assert regression_loss(STSB_LOGITS, STSB_SCORES, (0, 5), "authors").item() == pytest.approx(3.198984, abs=2e-6)
    assert regression_loss(STSB_LOGITS, STSB_SCORES, (0, 5), "kl").item() == pytest.approx(1.106789, abs=2e-6)
    assert predicted_scores(STSB_LOGITS, (0, 5)).tolist() == pytest.approx([2.590525, 4.436674], abs=2e-6)


@pytest.mark.parametrize("score", [0.0, 1.0, 2.5, 5.0])
def test_the_release_pulls_towards_squeezed_targets_and_kl_towards_the_score(score):
    found = {}
    for kind in ("authors", "kl"):
        logits = torch.zeros(1, 2, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

        def closure(logits=logits, optimizer=optimizer, kind=kind):
            optimizer.zero_grad()
            loss = regression_loss(logits, torch.tensor([score]), (0, 5), kind)
            loss.backward()
            return loss

        optimizer.step(closure)
        found[kind] = logits.softmax(-1)[0, 1].item()
    no, yes = mixture(torch.tensor([score]), (0, 5))[0].exp().tolist()
    assert found["authors"] == pytest.approx(yes / (no + yes), abs=1e-3)
    assert found["kl"] == pytest.approx(score / 5, abs=1e-2)
    assert 0.268 < found["authors"] < 0.732


# ---------------------------------------------------------------------------------------------------------- optimiser


def test_adamw_of_the_release_adds_epsilon_before_the_bias_correction():
    gradients = [3e-8, -1e-8, 2e-9]
    for flavour in ("authors", "torch"):
        p = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        optimizer = adamw([p], lr=0.1, flavour=flavour)
        m = v = 0.0
        expected = 1.0
        for t, g in enumerate(gradients, start=1):
            p.grad = torch.tensor([g], dtype=torch.float64)
            optimizer.step()
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            c1, c2 = 1 - 0.9**t, (1 - 0.999**t) ** 0.5
            expected -= (
                0.1 * c2 / c1 * m / (v**0.5 + 1e-8) if flavour == "authors" else 0.1 / c1 * m / (v**0.5 / c2 + 1e-8)
            )
            assert p.item() == pytest.approx(expected, rel=1e-9), (flavour, t)


def test_the_learning_rate_falls_to_zero_without_warm_up():
    assert [linear_decay(1.0, step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


# ------------------------------------------------------------------------------------------------------------ batches


def test_outputs_do_not_depend_on_batches_padding_or_repeats(pretrained, sentiment):
    loaded = pretrained("roberta")
    trial = Trial(loaded, TASKS["sst-2"], sentiment(8), TrialSettings(method="prompt"))
    prompts = trial.prepare(sentiment(7, seed=2))
    prompts = [*prompts, prompts[0], prompts[3]]
    model = trial.build_model().eval()
    pad = loaded.tokenizer.pad_token_id
    alone = np.concatenate([outputs_of(model, [p], pad) for p in prompts])
    for budget in (1, 50, 10_000):
        np.testing.assert_allclose(outputs_of(model, prompts, pad, batch_tokens=budget), alone, atol=1e-5)


def test_batches_hold_their_token_budget():
    lengths = [5, 50, 7, 20, 20, 3]
    seen = []
    for rows in length_batches(lengths, 60):
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= 60
        seen += rows
    assert sorted(seen) == list(range(6))


def test_collate_pads_at_the_end(bpe):
    batch = collate([Rendered([0, 4, 2], 1, [0, 0, 1]), Rendered([0, 2], 0, [0, 0])], 1, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[0, 4, 2], [0, 2, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]] and batch["mask_position"].tolist() == [1, 0]


# ------------------------------------------------------------------------------------------------------------- trials


@pytest.mark.parametrize("method", ["prompt", "prompt-demo", "finetune"])
@pytest.mark.parametrize("architecture", ["roberta", "bert"])
def test_training_learns_the_task(pretrained, sentiment, method, architecture):
    train, dev, test = sentiment(48), sentiment(24, seed=1), sentiment(40, seed=2)
    settings = TrialSettings(method=method, dropout=False, **{**QUICK, "lr": 2e-3, "max_steps": 120, "eval_every": 20})
    result = run_trial(pretrained(architecture), TASKS["sst-2"], train, dev, test, settings)
    assert result.test["sst-2"]["acc"] > 0.8
    assert result.test_outputs["sst-2"].shape == (40, 2)
    assert result.history and result.best_step in {entry["step"] for entry in result.history}


def test_the_same_settings_give_the_same_result_and_leave_the_model_alone(pretrained, sentiment):
    loaded = pretrained("roberta")
    arguments = (loaded, TASKS["sst-2"], sentiment(8), sentiment(8, seed=1), sentiment(10, seed=2))
    settings = TrialSettings(method="prompt-demo", filter="minilm", **QUICK)
    before = loaded.decoder_weight.clone()
    first, other, again = (run_trial(*arguments, dataclasses.replace(settings, seed=seed)) for seed in (42, 13, 42))
    np.testing.assert_array_equal(first.test_outputs["sst-2"], again.test_outputs["sst-2"])
    assert not np.array_equal(first.test_outputs["sst-2"], other.test_outputs["sst-2"])
    assert torch.equal(loaded.decoder_weight, before)


def test_micro_batches_give_the_gradient_of_the_whole_batch(pretrained, sentiment):
    arguments = (pretrained("roberta"), TASKS["sst-2"], sentiment(8), [], sentiment(10, seed=2))
    settings = TrialSettings(method="prompt", dropout=False, **{**QUICK, "max_steps": 3})
    whole = run_trial(*arguments, settings).test_outputs["sst-2"]
    parts = run_trial(*arguments, dataclasses.replace(settings, micro_batch_size=2)).test_outputs["sst-2"]
    np.testing.assert_allclose(whole, parts, atol=2e-4)


def test_the_first_of_equally_good_weights_is_kept(pretrained, sentiment, monkeypatch):
    scores = iter([0.5, 0.75, 0.75, 0.6, 0.9])
    monkeypatch.setattr(training, "measure", lambda task, outputs, examples: {"acc": next(scores)})
    settings = TrialSettings(method="prompt", dropout=False, **QUICK)
    trial = Trial(pretrained("roberta"), TASKS["sst-2"], sentiment(8), settings)
    model = trial.build_model()
    dev = sentiment(4, seed=1)
    seen = {}

    def told(step, score):
        seen[step] = model.decoder_weight.detach().clone()

    step, history, _ = trial.fit(model, dev, trial.prepare(dev), told)
    assert step == 10 and [entry["dev"] for entry in history] == [0.5, 0.75, 0.75, 0.6]
    assert torch.equal(model.decoder_weight, seen[10]) and not torch.equal(seen[10], seen[20])


def test_kept_weights_do_not_follow_the_training():
    parameter = torch.nn.Parameter(torch.zeros(3))
    kept = keep([parameter])
    with torch.no_grad():
        parameter += 1
    assert kept[0].tolist() == [0, 0, 0]
    restore([parameter], kept)
    assert parameter.tolist() == [0, 0, 0]


def test_without_dev_the_last_weights_are_tested(pretrained, sentiment):
    settings = TrialSettings(method="prompt", **QUICK)
    result = run_trial(pretrained("roberta"), TASKS["sst-2"], sentiment(8), [], sentiment(4, seed=1), settings)
    assert result.best_step == QUICK["max_steps"] and result.dev == {} and result.dev_score is None


def test_test_outputs_are_mean_logits_over_the_draws(pretrained, sentiment):
    loaded, examples = pretrained("roberta"), sentiment(5, seed=1)
    settings = TrialSettings(method="prompt-demo", **{**QUICK, "max_steps": 0, "num_sample": 3})
    trial = Trial(loaded, TASKS["sst-2"], sentiment(8), settings)
    prompts = trial.prepare(examples)
    model = trial.build_model().eval()
    logits = outputs_of(model, prompts, loaded.tokenizer.pad_token_id)
    expected = (logits[:5] + logits[5:10] + logits[10:]) / 3
    np.testing.assert_allclose(trial.outputs(model, prompts, 5), expected, atol=1e-6)


def scored(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    words = ["film", "story", "train", "people", "music", "plot"]
    examples = []
    for number in range(count):
        score = number % 6
        first = rng.permutation(words)
        second = [word if place < score else "city" for place, word in enumerate(first)]
        examples.append(Example((" ".join(first), " ".join(second)), float(min(score, 5)), f"pair {number}"))
    return examples


@pytest.mark.parametrize("compat", ["authors", "fixed"])
def test_scores_are_averaged_as_scores(pretrained, compat):
    loaded = pretrained("roberta")
    chosen = {"authors": {"stsb_demos": "authors", "regression_loss": "authors"}}.get(
        compat, {"stsb_demos": "paper", "regression_loss": "kl", "demo_sampler": "uniform", "adam_eps": "torch"}
    )
    settings = TrialSettings(method="prompt-demo", **QUICK, **chosen)
    trial = Trial(loaded, TASKS["sts-b"], scored(12), settings)
    prompts = trial.prepare(scored(4, seed=1))
    demonstrations = {ids.input_ids.count(loaded.tokenizer.sep_token_id) - 1 for ids in prompts}
    assert demonstrations == {1 if compat == "authors" else 2}, "the release shows only the lower half's"
    model = trial.build_model().eval()
    logits = torch.from_numpy(outputs_of(model, prompts, loaded.tokenizer.pad_token_id))
    expected = predicted_scores(logits, (0, 5)).reshape(2, 4).mean(0)
    np.testing.assert_allclose(trial.outputs(model, prompts, 4)[:, 0], expected.numpy(), atol=1e-5)
    result = run_trial(loaded, TASKS["sts-b"], scored(12), scored(12, 1), scored(12, 2), settings)
    assert set(result.test["sts-b"]) == {"pearson", "spearman"} and result.metric == "pearson"
    assert result.test_outputs["sts-b"].min() >= 0 and result.test_outputs["sts-b"].max() <= 5


def test_regression_by_standard_fine_tuning_has_one_output(pretrained):
    settings = TrialSettings(method="finetune", dropout=False, **{**QUICK, "max_steps": 5})
    result = run_trial(pretrained("bert"), TASKS["sts-b"], scored(12), scored(6, 1), scored(6, 2), settings)
    assert result.test_outputs["sts-b"].shape == (6, 1)


def test_several_templates_in_one_trial(pretrained, sentiment):
    """Training meets all of them, and outputs are averaged over all (the release tests the last one only)."""
    templates = ("*cls**sent_0*_It_was*mask*.*sep+*", "*cls**sent_0*_This_is*mask*.*sep+*")
    loaded, examples = pretrained("roberta"), sentiment(4, seed=1)
    settings = TrialSettings(method="prompt", template=templates, **{**QUICK, "max_steps": 0})
    both = run_trial(loaded, TASKS["sst-2"], sentiment(8), [], examples, settings).test_outputs["sst-2"]
    each = [
        run_trial(
            loaded, TASKS["sst-2"], sentiment(8), [], examples, dataclasses.replace(settings, template=template)
        ).test_outputs["sst-2"]
        for template in templates
    ]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-6)
    seen = set()
    trial = Trial(loaded, TASKS["sst-2"], sentiment(8), dataclasses.replace(settings, max_steps=5))
    stream = trial.training_prompts()
    for _ in range(5):
        seen |= {loaded.tokenizer.decode(p.input_ids[-6:])[:-4] for p in next(stream)[0]}
    assert any("It was" in text for text in seen) and any("This is" in text for text in seen)


@pytest.mark.parametrize("method", ["zero-shot", "icl"])
def test_methods_without_training(pretrained, sentiment, method):
    settings = TrialSettings(method=method, icl_examples=4)
    arguments = (pretrained("roberta"), TASKS["sst-2"], sentiment(8), sentiment(4, seed=1), sentiment(6, seed=2))
    result = run_trial(*arguments, settings)
    assert result.best_step is None and result.history == [] and len(result.test_outputs["sst-2"]) == 6
    other = run_trial(*arguments, dataclasses.replace(settings, lr=1.0))
    np.testing.assert_array_equal(result.test_outputs["sst-2"], other.test_outputs["sst-2"])


def test_zero_shot_is_the_untrained_prompt_model(pretrained, sentiment):
    loaded, examples = pretrained("modernbert"), sentiment(3, seed=1)
    result = run_trial(loaded, TASKS["sst-2"], sentiment(4), [], examples, TrialSettings(method="zero-shot"))
    trial = Trial(loaded, TASKS["sst-2"], sentiment(4), TrialSettings(method="zero-shot"))
    model = trial.build_model().eval()
    with torch.no_grad():
        for row, prompt in zip(result.test_outputs["sst-2"], trial.prepare(examples), strict=True):
            alone = model(**collate([prompt], loaded.tokenizer.pad_token_id, torch.device("cpu")))[0]
            np.testing.assert_allclose(row, alone.numpy(), atol=1e-5)


def test_classification_loss_is_cross_entropy_over_the_label_words(pretrained, sentiment):
    trial = Trial(pretrained("roberta"), TASKS["sst-2"], sentiment(8), TrialSettings(method="prompt"))
    logits, gold = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    assert trial.loss(logits, gold).item() == pytest.approx(F.cross_entropy(logits, gold).item())


def test_every_epoch_shows_every_example_once(pretrained, sentiment):
    trial = Trial(pretrained("roberta"), TASKS["sst-2"], sentiment(10), TrialSettings(method="prompt", batch_size=4))
    stream = trial.batches()
    first, second = ([next(stream) for _ in range(3)] for _ in range(2))
    assert [len(rows) for rows in first] == [4, 4, 2], "the last batch of an epoch is kept"
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10)) and first != second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "prompt_demo"}, "method=prompt_demo: give one of majority"),
        ({"batch_size": 8, "micro_batch_size": 3}, "batch_size=8 is not divisible by micro_batch_size=3"),
        ({"num_sample": 0}, "num_sample=0"),
        ({"method": "icl", "template": ("*mask*", "*mask*.")}, "method=icl with 2 templates"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"max_steps": -1}, "max_steps=-1"),
        ({"eval_every": 0}, "eval_every=0"),
        ({"regression_loss": "mse"}, "regression_loss=mse"),
        ({"stsb_demos": "all"}, "stsb_demos=all"),
        ({"segments": "3"}, "segments=3"),
        ({"filter_keep": 0.0}, "filter.keep=0.0"),
        ({"icl_cls": "back"}, "icl.cls_position=back"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        TrialSettings(**options)


def test_trials_without_data_or_model(pretrained, sentiment):
    with pytest.raises(InputError, match="the training set is empty"):
        run_trial(pretrained("roberta"), TASKS["sst-2"], [], [], {}, TrialSettings())
    with pytest.raises(InputError, match="method=prompt needs a model"):
        run_trial(None, TASKS["sst-2"], sentiment(2), [], {}, TrialSettings(method="prompt"))


def test_a_diverging_loss_is_bad_input(pretrained, sentiment):
    settings = TrialSettings(method="prompt", lr=float("inf"), max_steps=5, eval_every=5, batch_size=4)
    with pytest.raises(InputError, match=r"the training loss is nan by step 5: lower lr"):
        run_trial(pretrained("roberta"), TASKS["sst-2"], sentiment(8), sentiment(4, seed=1), {}, settings)


def test_settings_are_written_and_read_with_numbers_as_labels():
    settings = TrialSettings(template=("a", "b"), mapping={0: "terrible", 1: "great"})
    again = TrialSettings.from_dict(json.loads(json.dumps(settings.as_dict())))
    assert again == settings and list(again.mapping) == [0, 1]
    assert digest(settings.as_dict()) == digest(again.as_dict()) != digest(TrialSettings().as_dict())
