"""Gradient caching: the direct gradient, dropout included, with the activations of one chunk."""

import weakref

import pytest
import torch
from transformers import Trainer, TrainingArguments

from simcse.gradcache import in_original_order, plan_chunks, run_in_chunks
from simcse.model import ContrastiveModel, SentenceEncoder


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """6 triplets of different length with MLM targets."""
    ids = torch.randint(5, 60, (6, 3, 12))
    lengths = torch.randint(3, 13, (6, 3, 1))
    mask = (torch.arange(12) < lengths).long()
    ids = ids * mask
    labels = ids.masked_fill((torch.rand(ids.shape) > 0.3) | (mask == 0), -100)
    return {"input_ids": ids, "attention_mask": mask, "mlm_input_ids": ids.roll(1, 0) * mask, "mlm_labels": labels}


def gradients(model: ContrastiveModel, batch: dict, seed: int = 3) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model.train()(**batch)["loss"]
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("fixed_mask", [False, True])
@pytest.mark.parametrize("mlm_weight", [0.0, 0.1])
def test_cached_gradient_is_the_direct_gradient_with_dropout_active(tiny_config, batch, fixed_mask, mlm_weight):
    encoder = SentenceEncoder.from_config(tiny_config, mlm=mlm_weight > 0)
    options = {"fixed_mask": fixed_mask, "mlm_weight": mlm_weight, "dropout": 0.3}
    cached = ContrastiveModel(encoder, grad_cache_chunk=6, **options)
    # The same chunks in the same order draw the same masks; nothing is recomputed here. With the mask shared between
    # views the unit is an example of 3 rows, so that 6 rows make 2 examples.
    direct = ContrastiveModel(encoder, row_chunks=3, **options)
    direct_loss, direct_gradients = gradients(direct, batch)
    cached_loss, cached_gradients = gradients(cached, batch)
    assert cached_loss == direct_loss
    for mine, theirs in zip(cached_gradients, direct_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    other_loss, _ = gradients(cached, batch, seed=4)
    assert other_loss != cached_loss, "dropout was not active"


def test_cached_gradient_of_two_encoders_is_the_direct_gradient(tiny_config, batch):
    encoders = [SentenceEncoder.from_config(tiny_config) for _ in range(2)]
    direct = ContrastiveModel(encoders[0], second_encoder=encoders[1], row_chunks=3)
    cached = ContrastiveModel(encoders[0], second_encoder=encoders[1], grad_cache_chunk=6)
    for mine, theirs in zip(gradients(cached, batch)[1], gradients(direct, batch)[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def live_layer_outputs(model: ContrastiveModel, batch: dict) -> tuple[int, int, int]:
    """How many outputs of the first layer are alive after the forward, at most in the backward; and all calls."""
    outputs, most = [], 0

    def remember(_module, _args, output) -> None:
        nonlocal most
        tensor = output[0] if isinstance(output, tuple) else output
        outputs.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in outputs))

    handle = model.encoder.backbone.encoder.layer[0].register_forward_hook(remember)
    loss = model(**batch)["loss"]
    after_forward = sum(reference() is not None for reference in outputs)
    most = 0
    loss.backward()
    handle.remove()
    return after_forward, most, len(outputs)


def test_activations_of_one_chunk_live_at_a_time(tiny_config, batch):
    encoder = SentenceEncoder.from_config(tiny_config).train()
    assert live_layer_outputs(ContrastiveModel(encoder, row_chunks=6), batch) == (6, 0, 6)
    assert live_layer_outputs(ContrastiveModel(encoder, grad_cache_chunk=3), batch) == (0, 1, 12)


def test_evaluation_encodes_once(tiny_config, batch):
    encoder = SentenceEncoder.from_config(tiny_config)
    model = ContrastiveModel(encoder, grad_cache_chunk=3).eval()
    calls = []
    encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(**batch)
    assert len(calls) == 6


def test_trainer_takes_the_same_steps_with_and_without_caching(tiny_config, batch, tmp_path):
    examples = [{key: value[i] for key, value in batch.items() if not key.startswith("mlm")} for i in range(6)]
    weights = []
    for options in ({"row_chunks": 3}, {"grad_cache_chunk": 6}):
        torch.manual_seed(5)
        model = ContrastiveModel(SentenceEncoder.from_config(tiny_config), **options)
        arguments = TrainingArguments(
            tmp_path, max_steps=3, per_device_train_batch_size=6, learning_rate=1e-2, report_to=[], save_strategy="no",
            use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=examples).train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_plan_sorts_by_length_and_holds_every_row_once():
    plan = plan_chunks([3, 9, 5, 9, 1], num_chunks=2)
    assert plan == [[1, 3], [2, 0, 4]]
    for rows, size in ((10, 3), (7, 7), (5, 100), (12, 5)):
        chunks = plan_chunks(list(range(rows)), chunk_rows=size)
        assert sorted(row for chunk in chunks for row in chunk) == list(range(rows))
        assert max(map(len, chunks)) <= size
    assert plan_chunks([4, 2], num_chunks=5) == [[0], [1]]


def test_chunks_keep_real_tokens_and_order_whichever_side_is_padded():
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    ids = torch.arange(16).view(4, 4) * mask
    for flip in (False, True):
        rows, keep = (ids.flip(1), mask.flip(1)) if flip else (ids, mask)
        chunks = run_in_chunks(lambda x, m: (x * m).sum(1, keepdim=True), [rows], keep, num_chunks=2)
        assert torch.equal(in_original_order(chunks), ids.sum(1, keepdim=True))
