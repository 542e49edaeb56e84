"""Masked language models: LM-BFF's prompts as batches, and the release's arithmetic on a tiny RoBERTa."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import RobertaConfig, RobertaForMaskedLM

from lm_bff.data import Example
from lm_bff.model import Pretrained
from lm_bff.tasks import TASKS, get_task
from lm_bff.tiny import train_tokenizer
from mezo import MeZO
from mezo.medium import MediumEncoder, capped, medium_splits, release_seeds
from mezo.objectives import masked_loss
from shared import InputError

TEXTS = ("the soup was cold", "a joy", "the waiter was kind and the room was quiet", "we left at once")
EXAMPLES = [Example((text,), number % 2, f"line {number}") for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def pretrained():
    """A RoBERTa of two layers with random weights; its decoder is tied, as checkpoints have it."""
    tokenizer = train_tokenizer([*TEXTS, "it was great or terrible ."] * 4, 500, ["great", "terrible"])
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=130, type_vocab_size=1, hidden_dropout_prob=0.1, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return Pretrained(RobertaForMaskedLM(config), tokenizer)


@pytest.fixture(scope="module")
def encoder(pretrained):
    return MediumEncoder(pretrained, get_task("house-sentiment"))


def by_hand(model, rows):
    """Each prompt alone, without padding."""
    losses, right = [], []
    for row in rows:
        logits = model(
            input_ids=torch.tensor([row.prompt.input_ids]),
            attention_mask=torch.ones(1, len(row.prompt.input_ids), dtype=torch.long),
            mask_position=torch.tensor([row.prompt.mask_position]),
        )
        losses.append(F.cross_entropy(logits, torch.tensor([row.label])))
        right.append(int(logits.argmax()) == row.label)
    return torch.stack(losses).mean(), right


def test_the_loss_is_over_the_label_words_at_the_mask(pretrained, encoder):
    model, rows = encoder.model(), encoder.encode(EXAMPLES)
    assert not model.training
    words = [pretrained.tokenizer.convert_ids_to_tokens(i) for i in encoder.label_word_ids]
    assert words == ["terrible", "great"]
    expected, right = by_hand(model, rows)
    batch = encoder.batch(rows)
    assert masked_loss(model, batch).item() == pytest.approx(expected.item(), abs=1e-6)
    assert masked_loss(model, batch, kind="accuracy").item() == -sum(right) / 4
    assert encoder.evaluate(model, rows) == {"acc": sum(right) / 4}
    with pytest.raises(InputError, match="objective='f1' is unknown for a masked language model"):
        masked_loss(model, batch, kind="f1")


@pytest.mark.parametrize("restore", ["inplace", "exact"])
def test_a_tiny_robertas_trajectory_is_the_releases(encoder, restore):
    """Weight decay on every parameter, seeds from the global numpy generator, as the medium models have it."""
    rows = encoder.encode(EXAMPLES)
    batch, lr, eps, decay = encoder.batch(rows), 1e-3, 1e-3, 0.1
    naive = encoder.model(full_decoder=True)
    np.random.seed(42)
    expected = []
    with torch.no_grad():
        params = [p for p in naive.parameters() if p.requires_grad]
        for _ in range(8):
            seed = np.random.randint(1_000_000_000)

            def perturb(factor, seed=seed):
                torch.manual_seed(seed)
                for p in params:
                    p.data = p.data + (factor * torch.normal(0.0, 1.0, size=p.shape)) * eps

            perturb(1)
            plus = masked_loss(naive, batch)
            perturb(-2)
            gradient = ((plus - masked_loss(naive, batch)) / (2 * eps)).item()
            perturb(1)
            torch.manual_seed(seed)
            for p in params:
                p.data = p.data - lr * (gradient * torch.normal(0.0, 1.0, size=p.shape) + decay * p.data)
            expected.append((seed, plus.item(), gradient))
    model = encoder.model(full_decoder=True)
    optimizer = MeZO(
        model.named_parameters(), lr=lr, eps=eps, weight_decay=decay, decay_all=True, model=model, restore=restore
    )
    for seed, plus, gradient in expected:
        loss = optimizer.step(lambda: masked_loss(model, batch))
        assert optimizer.last.seed == seed
        assert loss == pytest.approx(plus, abs=1e-5)
        assert optimizer.last.projected_gradient == pytest.approx(gradient, rel=2e-3, abs=2e-3)
    assert masked_loss(model, batch).item() == pytest.approx(masked_loss(naive, batch).item(), abs=2e-5)


def test_only_the_decoders_label_rows_decide_the_loss(encoder):
    rows = encoder.encode(EXAMPLES)
    few, all_rows = encoder.model(), encoder.model(full_decoder=True)
    assert few.decoder_weight.shape[0] == 2 < all_rows.decoder_weight.shape[0]
    batch = encoder.batch(rows)
    assert masked_loss(few, batch).item() == pytest.approx(masked_loss(all_rows, batch).item(), abs=1e-6)


def test_the_accuracy_objective_trains_without_a_gradient(encoder):
    model, batch = encoder.model(), encoder.batch(encoder.encode(EXAMPLES))
    optimizer = MeZO(model.named_parameters(), lr=1e-2, eps=0.1, model=model)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(20):
        optimizer.step(lambda: masked_loss(model, batch, kind="accuracy"))
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_limits_of_the_paper_are_kept(pretrained):
    rte = MediumEncoder(
        pretrained, replace(TASKS["rte"], mapping={"entailment": "great", "not_entailment": "terrible"})
    )
    assert rte.builder.first_sent_limit == 240
    assert rte.builder.max_length == pretrained.max_positions  # fewer than the paper's 256
    snli = {"contradiction": "great", "entailment": "terrible", "neutral": "soup"}
    assert MediumEncoder(pretrained, replace(TASKS["snli"], mapping=snli)).builder.first_sent_limit is None


def test_seeds_are_those_of_the_releases_medium_runs():
    """SST-2 16-13, batches of 8, seed 42; MeZO goes through them as a stream of its own."""
    seeds = release_seeds(32, 8)
    assert [seeds() for _ in range(4)] == [980181758, 283627673, 248523535, 626709785]
    net = torch.nn.Linear(2, 1)
    optimizer = MeZO(net.named_parameters(), lr=0.0, seeds=release_seeds(32, 8))
    optimizer.step(lambda: net(torch.ones(1, 2)).sum())
    assert optimizer.last.seed == 980181758


def test_the_test_set_is_capped_as_the_release_caps_it():
    examples = [Example((str(number),), 0) for number in range(3000)]
    order = list(range(3000))
    np.random.RandomState(42).shuffle(order)
    found = capped(TASKS["sst-2"], examples, 1000)
    assert [int(one.sentences[0]) for one in found] == order[:1000]
    drawn = np.random.RandomState(42).choice(3000, 1000, replace=False)
    assert [int(one.sentences[0]) for one in capped(TASKS["trec"], examples, 1000)] == drawn.tolist()
    assert capped(TASKS["trec"], examples[:10], 1000) == examples[:10]


def test_house_splits_have_k_of_each_class():
    splits = medium_splits("house-sentiment", k=16, seed=13)
    assert (len(splits.train), len(splits.dev), len(splits.test["house-sentiment"])) == (32, 32, 224)
    with pytest.raises(InputError, match="task=sts-b is a regression"):
        medium_splits("sts-b")


@pytest.mark.mirror
@pytest.mark.parametrize(("name", "classes", "tested"), [("sst-2", 2, 872), ("trec", 6, 500), ("sst-5", 5, 1000)])
def test_real_splits_of_the_paper(name, classes, tested):
    splits = medium_splits(name, k=16, seed=42)
    assert (len(splits.train), len(splits.dev)) == (16 * classes, 16 * classes)
    assert len(splits.test[name]) == tested
