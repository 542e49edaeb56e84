"""The model: the paper's sizes and initialisation, its equations, the loss at predicted positions, what is exported."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm_masking.model import (
    CLASSES,
    MaskedLanguageModel,
    build_backbone,
    check_length,
    export,
    model_config,
    parameter_count,
    predicted,
)
from shared import InputError

TINY = {
    "num_hidden_layers": 3,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 30,
    "initializer_range": 0.3,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def tiny(norm="pre", vocab_size=50, **changes):
    backbone = build_backbone(model_config({**TINY, **changes}, norm, vocab_size), 3, vocab_size)
    return MaskedLanguageModel(backbone, vocab_size)


def batch(rows=5, length=12, vocab_size=50, seed=0):
    """Corrupted ids (49 is the mask), labels, uneven numbers of predicted tokens, none in row 1; row 2 is padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocab_size - 1, (rows, length), generator=generator)
    ids[:, 0] = 0
    chosen = torch.rand(rows, length, generator=generator) < torch.linspace(0.2, 0.8, rows)[:, None]
    chosen[1] = False
    ids[2, 8:], chosen[2, 8:] = 1, False
    labels = torch.where(chosen, ids, -100)
    return torch.where(chosen, vocab_size - 1, ids), labels, (ids != 1).long()


def sizes(name):
    folder = Path(__file__).parents[1] / "configs" / "model"
    return OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("name", "parameters"), [("medium", 51_533_913), ("base", 124_698_201), ("large", 355_413_081)]
)
@pytest.mark.parametrize("padded", [None, 64])
def test_sizes_have_the_papers_parameter_counts(name, parameters, padded):
    config = model_config({**sizes(name), "pad_vocab_to": padded}, "pre", 50265)
    assert config.vocab_size == (50304 if padded else 50265)
    with torch.device("meta"):
        model = MaskedLanguageModel(CLASSES["pre"][1](config), 50265)
    assert parameter_count(model) == parameters
    if name == "large":
        embeddings = model.backbone.base_model.embeddings
        tables = embeddings.word_embeddings.weight.shape[0] - (config.vocab_size - 50265) + 514
        assert round((parameters - tables * 1024) / 1e6, 1) == pytest.approx(303.4, abs=0.05)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_initial_weights_are_the_papers_and_a_function_of_the_seed(norm):
    config = model_config({**TINY, "hidden_size": 64, "intermediate_size": 256, "initializer_range": 0.02}, norm, 300)
    torch.manual_seed(1)
    model = build_backbone(config, seed=7)
    torch.manual_seed(2)
    again, other = build_backbone(config, seed=7), build_backbone(config, seed=8)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        if name.endswith("bias") or "token_type" in name:
            assert not parameter.any(), name
        elif "LayerNorm" in name or "layer_norm" in name:
            assert (parameter == 1).all(), name
        else:
            rows = parameter[2:] if "embeddings" in name else parameter
            assert float(rows.detach().std()) == pytest.approx(0.02, rel=0.1), name
            assert not torch.equal(parameter, other.get_parameter(name))
    embeddings = model.base_model.embeddings
    assert not embeddings.word_embeddings.weight[1].any() and not embeddings.position_embeddings.weight[1].any()
    assert model.lm_head.decoder.weight is embeddings.word_embeddings.weight
    assert model.lm_head.decoder.bias is model.lm_head.bias


def test_sinusoidal_positions_begin_as_sines_of_the_same_size_and_are_learned():
    config = model_config({**TINY, "hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.1}, "pre", 50)
    model = build_backbone(config, 1, positions="sinusoidal")
    table = model.base_model.embeddings.position_embeddings.weight
    assert not table[1].any() and table.requires_grad
    assert float(table[2:].detach().abs().max()) == pytest.approx(0.1, rel=1e-3)
    near, far = (float(torch.cosine_similarity(table[10], table[10 + step], dim=0).detach()) for step in (1, 12))
    assert near > 0.9 > far + 0.1
    with pytest.raises(InputError, match="position_init=zigzag"):
        build_backbone(config, 1, positions="zigzag")


def reference_logits(weights, ids, heads):
    """Pre-LayerNorm RoBERTa written from its equations, double precision: (rows, length, vocabulary)."""

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    base = "roberta_prelayernorm"
    real = ids != 1
    positions = torch.where(real, real.cumsum(1) + 1, 1)  # from 2 on; the pad row is 1
    table = weights[f"{base}.embeddings.word_embeddings.weight"]
    x = norm(
        f"{base}.embeddings.LayerNorm", table[ids] + weights[f"{base}.embeddings.position_embeddings.weight"][positions]
    )
    layer = 0
    while f"{base}.encoder.layer.{layer}.output.dense.weight" in weights:
        own = f"{base}.encoder.layer.{layer}"
        normed = norm(f"{own}.attention.LayerNorm", x)
        q, k, v = (
            linear(f"{own}.attention.self.{name}", normed).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~real[:, None, None, :], -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = x + linear(f"{own}.attention.output.dense", mixed)
        x = h + linear(
            f"{own}.output.dense", gelu(linear(f"{own}.intermediate.dense", norm(f"{own}.intermediate.LayerNorm", h)))
        )
        layer += 1
    x = norm(f"{base}.LayerNorm", x)
    x = norm("lm_head.layer_norm", gelu(linear("lm_head.dense", x)))
    return x @ table.T + weights["lm_head.bias"]


def test_loss_is_that_of_the_papers_equations():
    model = tiny().eval()
    ids, labels, mask = batch()
    positions, targets = predicted(labels)
    weights = {name: tensor.double() for name, tensor in model.backbone.state_dict().items()}
    logits = reference_logits(weights, ids, 4)
    theirs = model.backbone(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(theirs[mask.bool()].double(), logits[mask.bool()], atol=2e-4, rtol=1e-4)
    expected = -logits.flatten(0, 1)[positions].log_softmax(-1).gather(1, targets[:, None]).sum()
    assert float(model(ids, positions, targets, mask).detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("padded", [True, False])
def test_loss_and_gradients_equal_those_of_transformers_model_over_all_positions(norm, padded):
    model = tiny(norm)
    ids, labels, mask = batch()
    if not padded:
        ids, labels, mask = ids.clamp(min=4), labels, None
    positions, targets = predicted(labels)
    loss = model(ids, positions, targets, mask)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.backbone.named_parameters() if p.grad is not None}
    model.zero_grad()
    theirs = model.backbone(input_ids=ids, attention_mask=mask, labels=labels).loss * len(targets)
    theirs.backward()
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert len(ours) == len(list(model.backbone.parameters())) - 1  # all but the token type row
    for name, parameter in model.backbone.named_parameters():
        if name in ours:
            torch.testing.assert_close(ours[name], parameter.grad, atol=2e-4, rtol=1e-3, msg=name)


def test_batch_without_a_predicted_token_costs_nothing_and_moves_nothing():
    model = tiny()
    ids, labels, mask = batch()
    loss = model(ids, *predicted(torch.full_like(labels, -100)), mask)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not p.grad.any() for p in model.parameters() if p.requires_grad)


def test_rows_of_padding_in_the_embedding_change_nothing():
    plain, padded = tiny(), tiny(pad_vocab_to=64)
    assert padded.config.vocab_size == 64 and parameter_count(padded) == parameter_count(plain)
    ids, labels, mask = batch()
    losses = [model(ids, *predicted(labels), mask) for model in (plain, padded)]
    for loss in losses:
        loss.backward()
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-6)
    tables = [model.backbone.get_input_embeddings().weight for model in (plain, padded)]
    torch.testing.assert_close(tables[1].grad[:50], tables[0].grad, atol=1e-5, rtol=1e-5)
    assert not tables[1].grad[50:].any() and not padded.head.bias.grad[50:].any() and not tables[1][50:].any()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_export_loads_with_automodel_and_has_no_padding(norm, tmp_path, tokenizer):
    model = tiny(norm, pad_vocab_to=64).eval()
    export(model, tmp_path / "model", tokenizer)
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.model_type == ("roberta-prelayernorm" if norm == "pre" else "roberta")
    ids, labels, mask = batch()
    logits = loaded.eval()(input_ids=ids, attention_mask=mask).logits
    assert logits.shape[-1] == 50
    positions, targets = predicted(labels)
    loss = F.cross_entropy(logits.flatten(0, 1)[positions], targets, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(model(ids, positions, targets, mask).detach()), rel=1e-5)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == len(tokenizer)


def test_dropout_is_drawn_where_the_paper_has_it():
    model = tiny(dropout=0.1, attention_dropout=0.1).train()
    ids, labels, mask = batch()
    torch.manual_seed(0)
    first, second = (float(model(ids, *predicted(labels), mask).detach()) for _ in range(2))
    assert first != second
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.1


@pytest.mark.parametrize(
    ("changes", "norm", "message"),
    [
        ({}, "middle", "norm=middle: give pre or post"),
        ({"num_attention_heads": 5}, "pre", "model.hidden_size=24 does not divide"),
        ({"num_hidden_layers": 0}, "pre", "model.num_hidden_layers=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, norm, message):
    with pytest.raises(InputError, match=message):
        model_config({**TINY, **changes}, norm, 50)


def test_blocks_longer_than_the_positions_are_refused():
    config = model_config(TINY, "pre", 50)
    check_length(config, 28)
    with pytest.raises(InputError, match=r"block_length=29.*holds 28 tokens: give at least 31 rows"):
        check_length(config, 29)
