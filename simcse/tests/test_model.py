"""The training model against the authors' numbers on formula weights, and what it refuses.

The losses below were computed with the authors' training code on the same weights and inputs (see `conftest.py`).
"""

import math

import pytest
import torch
from transformers import (
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from shared import InputError
from simcse.model import ContrastiveModel, SentenceEncoder
from simcse.pooling import POOLERS

RELEASED = {
    2: {
        "cls": 1.9275070,
        "cls_before_pooler": 1.5752735,
        "avg": 2.3848126,
        "avg_top2": 2.7691989,
        "avg_first_last": 2.4781246,
    },
    3: {
        "cls": 2.4074044,
        "cls_before_pooler": 2.1640987,
        "avg": 2.8713908,
        "avg_top2": 3.0536480,
        "avg_first_last": 2.7143881,
    },
}
RELEASED_TEMPERATURES = {
    2: {0.001: 51.1336136, 0.01: 5.4350915, 0.1: 1.5776292, 1.0: 1.3891224},
    3: {0.001: 38.4834290, 0.01: 4.7200150, 0.1: 2.2186327, 1.0: 2.0909450},
}
RELEASED_WEIGHTS = {math.log(0.5): 2.3374913, math.log(2): 2.5334191, 1.0: 2.6146698}
RELEASED_MLM = {0.01: 1.6476027, 0.1: 1.9974003, 1.0: 5.4953766}
RELEASED_GRADIENT_NORMS = {2: 12.1508144, 3: 10.2456771}
TOLERANCE = 2e-5

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 40}
NO_TYPES = {"type_vocab_size": 1, "pad_token_id": 1}


def loss_of(model: ContrastiveModel, batch: dict) -> float:
    return model(**batch)["loss"].item()


@pytest.mark.parametrize("num_sent", [2, 3])
@pytest.mark.parametrize("pooler", list(RELEASED[2]))
def test_loss_is_the_released_codes_for_every_pooler(formula_encoder, formula_batch, num_sent, pooler):
    encoder = formula_encoder(pooler)
    assert len(list(encoder.parameters())) == (55 if pooler == "cls" else 53)
    loss = loss_of(ContrastiveModel(encoder), formula_batch(num_sent))
    assert loss == pytest.approx(RELEASED[num_sent][pooler], abs=TOLERANCE)


@pytest.mark.parametrize(("num_sent", "temperature"), [(n, t) for n, row in RELEASED_TEMPERATURES.items() for t in row])
def test_loss_is_the_released_codes_for_every_temperature(formula_encoder, formula_batch, num_sent, temperature):
    expected = RELEASED_TEMPERATURES[num_sent][temperature]
    loss = loss_of(ContrastiveModel(formula_encoder(), temperature=temperature), formula_batch(num_sent))
    # Cosines have an error of about 1e-7, which tau = 0.001 makes 1000 times larger.
    assert loss == pytest.approx(expected, abs=TOLERANCE, rel=2e-6 if temperature < 0.05 else 0)


@pytest.mark.parametrize("weight", list(RELEASED_WEIGHTS))
def test_loss_is_the_released_codes_for_every_hard_negative_weight(formula_encoder, formula_batch, weight):
    loss = loss_of(ContrastiveModel(formula_encoder(), hard_negative_weight=weight), formula_batch(3))
    assert loss == pytest.approx(RELEASED_WEIGHTS[weight], abs=TOLERANCE)


@pytest.fixture(scope="module")
def mlm_batch(formula_batch) -> dict[str, torch.Tensor]:
    """Position 1 of every row is masked, its id is the label."""
    batch = formula_batch(2)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, :, 1] = batch["input_ids"][:, :, 1]
    masked = batch["input_ids"].clone()
    masked[:, :, 1] = 3
    return batch | {"mlm_input_ids": masked, "mlm_labels": labels}


@pytest.mark.parametrize("mlm_weight", list(RELEASED_MLM))
@pytest.mark.parametrize("options", [{}, {"row_chunks": 3}, {"grad_cache_chunk": 3}])
def test_loss_with_mlm_is_the_released_codes(formula_encoder, mlm_batch, mlm_weight, options):
    encoder = formula_encoder(mlm=True)
    loss = loss_of(ContrastiveModel(encoder, mlm_weight=mlm_weight, **options), mlm_batch)
    assert loss == pytest.approx(RELEASED_MLM[mlm_weight], abs=TOLERANCE)


@pytest.mark.parametrize("num_sent", [2, 3])
@pytest.mark.parametrize("options", [{}, {"row_chunks": 4}, {"grad_cache_chunk": 2}])
def test_gradient_norm_is_the_released_codes(formula_encoder, formula_batch, gradient_norm, num_sent, options):
    model = ContrastiveModel(formula_encoder(), **options)
    model(**formula_batch(num_sent))["loss"].backward()
    assert gradient_norm(model) == pytest.approx(RELEASED_GRADIENT_NORMS[num_sent], abs=1e-4)


def test_every_parameter_has_a_gradient(formula_encoder, mlm_batch):
    model = ContrastiveModel(formula_encoder(mlm=True), mlm_weight=0.1)
    model(**mlm_batch)["loss"].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_batch_without_a_masked_token_adds_nothing_and_no_nan(formula_encoder, mlm_batch):
    model = ContrastiveModel(formula_encoder(mlm=True), mlm_weight=1.0)
    nothing = mlm_batch | {"mlm_labels": torch.full_like(mlm_batch["mlm_labels"], -100)}
    plain = {key: value for key, value in mlm_batch.items() if not key.startswith("mlm")}
    assert loss_of(model, nothing) == loss_of(model.eval(), plain)


def test_tied_mlm_head_uses_the_input_embeddings(formula_config, mlm_batch):
    encoder = SentenceEncoder.from_config(formula_config, mlm=True, tie_mlm=True)
    assert "mlm_head.decoder.weight" not in dict(encoder.named_parameters())
    untied = SentenceEncoder.from_config(formula_config, mlm=True)
    state = encoder.state_dict() | {"mlm_head.decoder.weight": encoder.backbone.get_input_embeddings().weight}
    untied.load_state_dict(state)
    losses = [loss_of(ContrastiveModel(each, mlm_weight=1.0), mlm_batch) for each in (encoder, untied)]
    assert losses[0] == losses[1]


def test_logits_are_the_detached_similarities(formula_encoder, formula_batch):
    output = ContrastiveModel(formula_encoder())(**formula_batch(3))
    assert output["logits"].shape == (4, 8)
    assert not output["logits"].requires_grad
    loss = torch.nn.functional.cross_entropy(output["logits"], torch.arange(4))
    torch.testing.assert_close(loss, output["loss"].detach())


@pytest.mark.parametrize("pooler", [name for name in POOLERS if name != "last"])
@pytest.mark.parametrize("options", [{"row_chunks": 2}, {"row_chunks": 100}, {"row_chunks": 2, "grad_cache_chunk": 3}])
def test_chunks_of_rows_give_the_same_loss(formula_encoder, formula_batch, pooler, options):
    encoder, batch = formula_encoder(pooler), formula_batch(3)
    whole = loss_of(ContrastiveModel(encoder), batch)
    assert loss_of(ContrastiveModel(encoder, **options), batch) == pytest.approx(whole, abs=1e-5)


def test_chunks_are_trimmed_to_their_longest_row(formula_encoder, formula_batch):
    encoder, batch = formula_encoder(), formula_batch(2)
    widths = []
    encoder.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    ContrastiveModel(encoder, row_chunks=4)(**batch)
    lengths = sorted(batch["attention_mask"].sum(-1).flatten().tolist(), reverse=True)
    assert widths == lengths[::2]


def test_second_encoder_embeds_positives_and_hard_negatives(formula_encoder, formula_batch, formula_config):
    first, second = formula_encoder(), SentenceEncoder.from_config(formula_config)
    batch = formula_batch(3)
    model = ContrastiveModel(first, second_encoder=second, row_chunks=2)
    vectors = model.embed_views(**batch)
    for view, encoder in enumerate((first, second, second)):
        expected = encoder.embed(*[batch[key][:, view] for key in ("input_ids", "attention_mask", "token_type_ids")])
        torch.testing.assert_close(vectors[:, view], expected, rtol=1e-4, atol=1e-5)
    model(**batch)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_two_copies_of_one_encoder_give_the_loss_of_one(formula_encoder, formula_batch):
    model = ContrastiveModel(formula_encoder(), second_encoder=formula_encoder())
    assert loss_of(model, formula_batch(3)) == pytest.approx(RELEASED[3]["cls"], abs=TOLERANCE)


def test_unsupervised_views_differ_by_dropout_only(tiny_config):
    encoder = SentenceEncoder.from_config(tiny_config).train()
    ids = torch.randint(5, 60, (3, 1, 8)).expand(3, 2, 8)
    model = ContrastiveModel(encoder)
    views = model.embed_views(ids, torch.ones_like(ids))
    assert not torch.allclose(views[:, 0], views[:, 1])
    views = model.eval().embed_views(ids, torch.ones_like(ids))
    torch.testing.assert_close(views[:, 0], views[:, 1])


CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES | NO_TYPES),
    "mpnet": MPNetConfig(**SIZES | {"pad_token_id": 1}),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40
    ),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=40),
}
DECODERS = ("llama", "qwen2", "qwen3", "gpt2")


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_family_trains_with_one_gradient_per_parameter(name, formula_batch):
    pooler = "last" if name in DECODERS else "cls"
    encoder = SentenceEncoder.from_config(CONFIGS[name], pooler=pooler).train()
    batch = formula_batch(3)
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, CONFIGS[name].pad_token_id or 0)
    output = ContrastiveModel(encoder)(**batch)
    output["loss"].backward()
    assert output["loss"].isfinite()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in DECODERS])
@pytest.mark.parametrize("pooler", ["cls", "avg_top2"])
def test_encoders_do_not_see_padding(name, pooler):
    encoder = SentenceEncoder.from_config(CONFIGS[name], pooler=pooler).eval()
    ids, mask = torch.randint(5, 60, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    padding = torch.full((3, 5), CONFIGS[name].pad_token_id or 0)
    padded = torch.cat([ids, padding], 1), torch.cat([mask, torch.zeros_like(padding)], 1)
    torch.testing.assert_close(encoder.embed(*padded), encoder.embed(ids, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("pooler", ["avg", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_decoders_do_not_see_padding_on_either_side(name, pooler, side):
    encoder = SentenceEncoder.from_config(CONFIGS[name], pooler=pooler).eval()
    ids, ones = torch.randint(5, 60, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    zeros = torch.zeros(3, 5, dtype=torch.long)
    order = (zeros, ids) if side == "left" else (ids, zeros)
    mask = (zeros, ones) if side == "left" else (ones, zeros)
    embedded = encoder.embed(torch.cat(order, 1), torch.cat(mask, 1))
    torch.testing.assert_close(embedded, encoder.embed(ids, ones), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooler", ["cls", "cls_before_pooler"])
def test_first_token_pooling_of_a_causal_model_is_refused(pooler):
    with pytest.raises(InputError, match=rf"pooler is '{pooler}' with model type 'llama'.*use avg or last"):
        SentenceEncoder.from_config(CONFIGS["llama"], pooler=pooler)


def test_roberta_takes_no_token_types_and_counts_its_offset_positions():
    encoder = SentenceEncoder.from_config(CONFIGS["roberta"]).eval()
    ids = torch.randint(5, 60, (2, 6))
    ones = torch.ones_like(ids)
    assert torch.equal(encoder.embed(ids, ones, ones), encoder.embed(ids, ones))
    assert encoder.max_length == 38
    encoder.embed(torch.full((1, 38), 5), torch.ones(1, 38, dtype=torch.long))
    with pytest.raises(InputError, match="a sequence of 39 tokens is longer than the model's 38 positions"):
        encoder.embed(torch.full((1, 39), 5), torch.ones(1, 39, dtype=torch.long))


def test_bert_uses_the_token_types_it_is_given(formula_encoder):
    encoder = formula_encoder().eval()
    ids = torch.randint(5, 50, (2, 6))
    ones = torch.ones_like(ids)
    assert not torch.allclose(encoder.embed(ids, ones, ones), encoder.embed(ids, ones, 0 * ones))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"similarity": "l2"}, "similarity is 'l2'"),
        ({"mlm_weight": -0.1}, "mlm_weight is -0.1"),
        ({"mlm_weight": 0.1}, "the encoder has no MLM head"),
        ({"dropout": 1.0}, r"dropout.p is 1.0"),
        ({"dropout": -0.1}, r"dropout.p is -0.1"),
        ({"row_chunks": 0}, "row_chunks is 0"),
        ({"grad_cache_chunk": 0}, "grad_cache_chunk is 0"),
    ],
)
def test_unusable_settings_are_named(formula_encoder, options, message):
    with pytest.raises(InputError, match=message):
        ContrastiveModel(formula_encoder(), **options)


def test_mlm_head_that_nothing_trains_is_refused(formula_encoder):
    with pytest.raises(InputError, match="has an MLM head, but mlm_weight is 0"):
        ContrastiveModel(formula_encoder(mlm=True))
    with pytest.raises(InputError, match="mlm_weight is set together with a second encoder"):
        ContrastiveModel(formula_encoder(mlm=True), mlm_weight=0.1, second_encoder=formula_encoder())


def test_batches_that_do_not_fit_the_settings_are_named(formula_encoder, formula_batch):
    with pytest.raises(InputError, match=r"hard_negative_weight is 1\.0, but there are no hard negatives"):
        ContrastiveModel(formula_encoder(), hard_negative_weight=1.0)(**formula_batch(2))
    with pytest.raises(InputError, match=r"input_ids must be \(batch, num_sent >= 2, seq\), but is \(4, 1, 9\)"):
        ContrastiveModel(formula_encoder())(**formula_batch(1))
    with pytest.raises(InputError, match="the batch has no mlm_input_ids"):
        ContrastiveModel(formula_encoder(mlm=True), mlm_weight=0.1)(**formula_batch(2))


def test_unusable_encoders_are_named(formula_config, formula_encoder):
    from transformers import T5Config

    with pytest.raises(InputError, match="eval_pooler is 'mean', but must be one of cls"):
        formula_encoder().eval_pooler = "mean"
    with pytest.raises(InputError, match="pooler is 'mean', but must be one of cls"):
        SentenceEncoder.from_config(formula_config, pooler="mean")
    with pytest.raises(InputError, match="mlp_only_train is true with pooler 'avg'"):
        SentenceEncoder.from_config(formula_config, pooler="avg", mlp_only_train=True)
    with pytest.raises(InputError, match="model type is 't5', which is not supported; encoders: bert"):
        SentenceEncoder.from_config(T5Config())
    with pytest.raises(InputError, match="mlm is on with model type 'llama'"):
        SentenceEncoder.from_config(CONFIGS["llama"], pooler="avg", mlm=True)


def test_tokenizer_that_does_not_fit_is_named(formula_config, tiny_config, tiny_tokenizer):
    SentenceEncoder.from_config(tiny_config).check_tokenizer(tiny_tokenizer, mlm=True)
    with pytest.raises(InputError, match=rf"the tokenizer has {len(tiny_tokenizer)} tokens.*50"):
        SentenceEncoder.from_config(formula_config).check_tokenizer(tiny_tokenizer)
    without_mask = type(tiny_tokenizer)(vocab=tiny_tokenizer.get_vocab())
    without_mask.mask_token = None
    SentenceEncoder.from_config(tiny_config).check_tokenizer(without_mask)
    with pytest.raises(InputError, match="mlm is on, but the tokenizer has no mask token"):
        SentenceEncoder.from_config(tiny_config).check_tokenizer(without_mask, mlm=True)
