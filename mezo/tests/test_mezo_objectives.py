"""Losses: shared beginnings change nothing, and the trajectories are those of the release's arithmetic."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import OPTConfig, OPTForCausalLM

from mezo import MeZO
from mezo.encoding import Encoded
from mezo.modes import Mode, attach, trainable
from mezo.objectives import objective_for
from mezo.scoring import candidate_scores, hidden_at_options, lay_out, refuse_unsupported
from mezo.tasks import get_task
from mezo.tiny_causal import FAMILIES
from shared import InputError

SENTENCES = ["The film is a joy .", "holes", "The plot has holes . The plot has holes . The film was Yes", "a joy . No"]


def sentiment(count=4):
    task = get_task("sst2")
    return [task.sample({"sentence": SENTENCES[n], "label": n % 2}, f"row {n}") for n in range(count)]


def choices():
    """COPA-like samples: options of several tokens and of different lengths."""
    names = ("premise", "choice1", "choice2", "question", "label")
    rows = [
        ("The film is a joy.", "It was great.", "The plot was terrible. No", "cause", 0),
        ("I fell.", "Yes", "The plot has holes", "effect", 1),
    ]
    return [get_task("copa").sample(dict(zip(names, row, strict=True)), "row") for row in rows]


def one_by_one(model, encoded, mean=True):
    """Each candidate alone, its whole logits, log-softmax and a loop: the definition."""
    found = []
    for example in encoded:
        scores = []
        for ids, option in zip(example.candidates, example.option_lens, strict=True):
            logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            own = torch.stack([logprobs[at - 1, ids[at]] for at in range(len(ids) - option, len(ids))])
            scores.append(own.mean() if mean else own.sum())
        found.append(torch.stack(scores))
    return found


def release_loss(model, encoded):
    """Every candidate a row, padded on the left to a multiple of 8, attention masked, mean log p of its option."""
    rows = [pair for example in encoded for pair in zip(example.candidates, example.option_lens, strict=True)]
    width = -(-max(len(ids) for ids, _ in rows) // 8) * 8
    input_ids = torch.tensor([[1] * (width - len(ids)) + list(ids) for ids, _ in rows])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=input_ids, attention_mask=mask, position_ids=positions).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(-1, input_ids[:, 1:, None])[..., 0]
    scores = torch.stack([row[-option:].mean() for row, (_, option) in zip(logprobs, rows, strict=True)])
    gold = torch.tensor([example.gold[0] for example in encoded])
    return F.cross_entropy(scores.view(len(encoded), -1), gold)


def release_step(params, loss, lr, eps, weight_decay):
    """One step as the sheet's section 2.2 lists it: global generators, temporaries, +1, -2, +1."""
    seed = np.random.randint(1_000_000_000)

    def perturb(factor):
        torch.manual_seed(seed)
        for _, p in params:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.device, dtype=p.dtype)
            p.data = p.data + (factor * z) * eps

    perturb(1)
    plus = loss()
    perturb(-2)
    minus = loss()
    gradient = ((plus - minus) / (2 * eps)).item()
    perturb(1)
    torch.manual_seed(seed)
    for name, p in params:
        z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.device, dtype=p.dtype)
        decay = 0 if any(part in name for part in ("bias", "layer_norm", "layernorm")) else weight_decay
        p.data = p.data - lr * (gradient * z + decay * p.data)
    return seed, plus.item(), gradient


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_sharing_a_beginning_gives_the_scores_of_one_pass_per_candidate(
    tiny_models, tiny_tokenizer, family, attention, layout
):
    model = tiny_models[family]
    model.set_attn_implementation(attention)
    three = Encoded("three", ((0, 5, 6, 7), (0, 5, 8, 9, 4), (0, 5, 6, 9)), (1, 3, 2), (2,))
    for task, samples, more in (("sst2", sentiment(), []), ("copa", choices(), [three])):
        encoded = [*objective_for(get_task(task), tiny_tokenizer, kind="candidates").encode(samples), *more]
        with torch.no_grad():
            expected = one_by_one(model, encoded)
            laid = lay_out(encoded, layout=layout)
            for found, one in zip(candidate_scores(model, laid), expected, strict=True):
                assert torch.allclose(found, one, atol=3e-6)
            sums = candidate_scores(model, laid, mean=False)
            for found, one in zip(sums, one_by_one(model, encoded, mean=False), strict=True):
                assert torch.allclose(found, one, atol=1e-5)
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_one_pass_per_candidate(tiny_models, tiny_tokenizer, family):
    model, objective = tiny_models[family], objective_for(get_task("copa"), tiny_tokenizer, kind="candidates")
    encoded = objective.encode(choices())
    losses = [
        objective.loss(model, encoded),
        replace(objective, share=False).loss(model, encoded),
    ]
    one, other = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["lora", "prefix"])
@torch.no_grad()
def test_adapters_and_prefixes_are_seen_by_every_branch(tiny_models, tiny_tokenizer, family, mode):
    model = copy.deepcopy(tiny_models[family])
    attach(model, Mode(kind=mode, prefix_init="random"))
    encoded = objective_for(get_task("copa"), tiny_tokenizer, kind="candidates").encode(choices())
    before = one_by_one(tiny_models[family], encoded)
    for _, p in trainable(model):
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    expected = one_by_one(model, encoded)
    assert not torch.allclose(expected[0], before[0], atol=1e-3)
    for layout in ("rows", "packed"):
        for found, one in zip(candidate_scores(model, lay_out(encoded, layout=layout)), expected, strict=True):
            assert torch.allclose(found, one, atol=1e-5)


def test_one_token_options_run_the_prompt_once(tiny_tokenizer):
    encoded = objective_for(get_task("sst2"), tiny_tokenizer).encode(sentiment())
    prompts = sum(len(example.candidates[0]) - 1 for example in encoded)
    packed, apart = lay_out(encoded, layout="packed"), lay_out(encoded, share=False, layout="rows")
    assert packed.tokens == prompts
    assert lay_out(encoded, layout="rows").mask is None
    assert apart.tokens == 2 * lay_out(encoded, layout="rows").tokens
    assert lay_out(encoded, layout="auto").tokens == prompts  # lengths differ: no padding


def test_only_rows_that_predict_options_reach_the_output_layer(tiny_models, tiny_tokenizer):
    model, seen = tiny_models["opt"], []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    objective = objective_for(get_task("sst2"), tiny_tokenizer)
    objective.loss(model, objective.encode(sentiment()))
    handle.remove()
    assert seen == [(1, 8, len(tiny_tokenizer))]  # two options of four examples


@pytest.mark.parametrize("restore", ["inplace", "exact"])
def test_opts_trajectory_is_the_releases_with_half_the_rows(tiny_models, tiny_tokenizer, restore):
    """Ten steps: the release's left-padded row per candidate and its arithmetic, and one pass per prompt."""
    objective = objective_for(get_task("sst2"), tiny_tokenizer, model_type="opt")
    encoded, model = objective.encode(sentiment()), tiny_models["opt"]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    np.random.seed(42)
    with torch.no_grad():
        named = list(model.named_parameters())
        expected = [release_step(named, lambda: release_loss(model, encoded), 1e-3, 1e-3, 0.1) for _ in range(10)]
        after = release_loss(model, encoded).item()
        for name, p in model.named_parameters():
            p.data = start[name].clone()
    optimizer = MeZO(model.named_parameters(), lr=1e-3, eps=1e-3, weight_decay=0.1, model=model, restore=restore)
    for seed, plus, gradient in expected:
        loss = optimizer.step(lambda: objective.loss(model, encoded))
        assert optimizer.last.seed == seed
        assert loss == pytest.approx(plus, abs=1e-5)
        assert optimizer.last.projected_gradient == pytest.approx(gradient, rel=2e-3, abs=2e-3)
    assert objective.loss(model, encoded).item() == pytest.approx(after, abs=2e-5)
    for name, p in model.named_parameters():
        p.data = start[name]


def test_a_language_models_loss_is_the_mean_over_all_option_tokens(tiny_models, tiny_tokenizer):
    model, objective = tiny_models["llama"], objective_for(get_task("copa"), tiny_tokenizer)
    encoded = objective.encode(choices())
    assert [len(example.candidates) for example in encoded] == [1, 1]
    each = []
    for example in encoded:
        ids, option = example.candidates[0], example.option_lens[0]
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        each += [-logprobs[at - 1, ids[at]] for at in range(len(ids) - option, len(ids))]
    assert objective.loss(model, encoded).item() == pytest.approx(torch.stack(each).mean().item(), abs=1e-5)
    whole = replace(objective, only_train_option=False).loss(model, encoded)
    labels = [model(torch.tensor([e.candidates[0]]), labels=torch.tensor([e.candidates[0]])).loss for e in encoded]
    weights = torch.tensor([len(e.candidates[0]) - 1.0 for e in encoded])
    assert whole.item() == pytest.approx(((torch.stack(labels) * weights).sum() / weights.sum()).item(), abs=1e-5)


def test_examples_with_different_numbers_of_candidates_count_alike(tiny_models, tiny_tokenizer):
    model, objective = tiny_models["qwen2"], objective_for(get_task("sst2"), tiny_tokenizer)
    two = Encoded("two", ((0, 5, 6), (0, 5, 7)), (1, 1), (1,))
    three = Encoded("three", ((0, 8, 6), (0, 8, 7), (0, 8, 9)), (1, 1, 1), (0,))
    apart = [objective.loss(model, [example]).item() for example in (two, three)]
    assert objective.loss(model, [two, three]).item() == pytest.approx(sum(apart) / 2, abs=1e-6)


def test_accuracy_is_a_loss_without_a_gradient(tiny_models, tiny_tokenizer):
    model, objective = tiny_models["opt"], objective_for(get_task("sst2"), tiny_tokenizer, kind="accuracy")
    encoded = objective.encode(sentiment())
    right = [int(scores.argmax()) == e.gold[0] for scores, e in zip(one_by_one(model, encoded), encoded, strict=True)]
    loss = objective.loss(model, encoded)
    assert loss.item() == -sum(right) / 4
    assert not objective.differentiable and not loss.requires_grad


def test_f1_of_generated_text_is_a_loss(tiny_models, tiny_tokenizer):
    task = replace(get_task("squad"), max_new_tokens=4)
    row = {"title": "T", "context": "C", "question": "Q", "answers": {"text": ["A"]}}
    objective = objective_for(task, tiny_tokenizer, kind="f1")
    prompts = objective.encode([task.sample(row, "row")])
    model = copy.deepcopy(tiny_models["llama"])
    words = [tiny_tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" great", " terrible", "Yes")]
    kept = torch.zeros(len(tiny_tokenizer), 1)
    kept[words] = 1
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * kept)  # so that it says words
    assert objective.loss(model, prompts).item() == 0
    ids = torch.tensor([prompts[0].ids])
    new = model.generate(ids, max_new_tokens=4, do_sample=False)[0][len(prompts[0].ids) :]
    said = tiny_tokenizer.decode(new, skip_special_tokens=True).split("\n")[0].strip()
    assert said
    assert objective.loss(model, [replace(prompts[0], answers=(said,))]).item() == -1


def test_in_half_precision_the_loss_is_still_fine_grained(tiny_models, tiny_tokenizer):
    """With weights in half precision the losses of nearby weights differ in fp32 and often not in the native type."""
    dtype, objective = torch.bfloat16, objective_for(get_task("sst2"), tiny_tokenizer)
    model = copy.deepcopy(tiny_models["opt"]).to(dtype)
    encoded, values = objective.encode(sentiment()), {"fp32": set(), "native": set()}
    optimizer = MeZO(model.named_parameters(), lr=0.0, model=model)
    for loss_dtype, seen in values.items():
        chosen = replace(objective, loss_dtype=loss_dtype)
        with torch.no_grad():
            for _ in range(16):
                optimizer.step(lambda chosen=chosen: chosen.loss(model, encoded))
                seen.add(optimizer.last.projected_gradient)
        assert chosen.loss(model, encoded).dtype == (torch.float32 if loss_dtype == "fp32" else dtype)
    assert len(values["fp32"]) > 1.2 * len(values["native"])


def test_features_of_probing_are_what_the_output_layer_is_given(tiny_models, tiny_tokenizer):
    model = tiny_models["opt"]
    encoded = objective_for(get_task("copa"), tiny_tokenizer, kind="candidates").encode(choices())
    features, targets = hidden_at_options(model, encoded)
    right = [(e.candidates[e.gold[0]], e.option_lens[e.gold[0]]) for e in encoded]
    assert targets.tolist() == [token for ids, option in right for token in ids[-option:]]
    whole = model.model(torch.tensor([right[0][0]])).last_hidden_state[0, -right[0][1] - 1 : -1]
    assert torch.allclose(features[: right[0][1]], whole, atol=1e-5)
    assert not features.requires_grad


def test_models_and_lengths_that_cannot_be_scored_are_named(tiny_models, tiny_tokenizer):
    odd = OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
                    word_embed_proj_dim=8, do_layer_norm_before=False)  # fmt: skip
    with pytest.raises(InputError, match="opt-350m normalises behind its layers"):
        refuse_unsupported(OPTForCausalLM(odd))
    objective = objective_for(get_task("sst2"), tiny_tokenizer)
    task = get_task("sst2")
    long = objective.encode([task.sample({"sentence": "joy " * 300, "label": 0}, "row")])
    with pytest.raises(InputError, match="tokens, the model 256 positions; lower max_length"):
        objective.loss(tiny_models["opt"], long)
    with pytest.raises(InputError, match="the batch is empty"):
        lay_out([])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("sst2", {"kind": "mse"}, "objective='mse' is unknown"),
        ("sst2", {"kind": "f1"}, "objective=f1: task sst2 has no answers"),
        ("squad", {"kind": "candidates"}, "objective=candidates: task squad is generated"),
        ("squad", {"kind": "accuracy"}, "task squad is generated and has no candidates"),
        ("sst2", {"loss_dtype": "fp16"}, "loss_dtype='fp16' is unknown: choose fp32, native"),
        ("sst2", {"layout": "left"}, "layout='left' is unknown"),
    ],
)
def test_objectives_that_make_no_sense_are_named(tiny_tokenizer, task, options, message):
    with pytest.raises(InputError, match=message):
        objective_for(get_task(task), tiny_tokenizer, **options)
