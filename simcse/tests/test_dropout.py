"""One rate for every dropout of a model, and one mask for all views."""

import pytest
import torch
from transformers import DistilBertConfig, LlamaConfig

from simcse.dropout import replayed, set_dropout
from simcse.model import ContrastiveModel, SentenceEncoder


@pytest.fixture
def ids() -> torch.Tensor:
    """5 sentences of different length, padded with 0."""
    rows = torch.randint(5, 60, (5, 9))
    for row, length in zip(rows, (9, 4, 6, 3, 8), strict=True):
        row[length:] = 0
    return rows


def copies(ids: torch.Tensor, num_sent: int = 2) -> dict[str, torch.Tensor]:
    views = ids.unsqueeze(1).expand(-1, num_sent, -1).contiguous()
    return {"input_ids": views, "attention_mask": (views != 0).long()}


def test_rate_reaches_hidden_and_attention_dropout_and_config(tiny_config):
    encoder = SentenceEncoder.from_config(tiny_config)
    ContrastiveModel(encoder, dropout=0.37)
    rates = {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.37}
    assert (encoder.config.hidden_dropout_prob, encoder.config.attention_probs_dropout_prob) == (0.37, 0.37)


def test_rate_zero_switches_all_randomness_off(tiny_config, ids):
    encoder = SentenceEncoder.from_config(tiny_config).train()
    views = ContrastiveModel(encoder, dropout=0.0).embed_views(**copies(ids))
    torch.testing.assert_close(views[:, 0], views[:, 1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        DistilBertConfig(vocab_size=60, dim=16, n_layers=1, n_heads=2, hidden_dim=32),
        LlamaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
    ],
    ids=["distilbert", "llama"],
)
def test_attention_dropout_is_active_in_every_family(config, ids):
    encoder = SentenceEncoder.from_config(config, pooler="avg").train()
    mask = (ids != 0).long()
    set_dropout(encoder.backbone, 0.5)
    assert not torch.allclose(encoder.embed(ids, mask), encoder.embed(ids, mask))
    set_dropout(encoder.backbone, 0.0)
    assert torch.equal(encoder.embed(ids, mask), encoder.embed(ids, mask))


@pytest.mark.parametrize("options", [{}, {"row_chunks": 2}, {"grad_cache_chunk": 4}])
def test_fixed_mask_gives_identical_sentences_identical_embeddings(tiny_config, ids, options):
    encoder = SentenceEncoder.from_config(tiny_config).train()
    views = ContrastiveModel(encoder, fixed_mask=True, **options).embed_views(**copies(ids, 3))
    assert torch.equal(views[:, 0], views[:, 1])
    assert torch.equal(views[:, 0], views[:, 2])
    without = encoder.eval().embed(ids, (ids != 0).long())
    assert not torch.allclose(views[:, 0], without, atol=1e-3), "dropout was not active"


def test_fixed_mask_still_differs_between_sentences_and_steps(tiny_config, ids):
    encoder = SentenceEncoder.from_config(tiny_config).train()
    model = ContrastiveModel(encoder, fixed_mask=True)
    same = copies(ids[:1].expand(4, -1))
    first, second = model.embed_views(**same), model.embed_views(**same)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, second)


def test_replay_leaves_the_random_state_where_one_call_would():
    device = torch.device("cpu")
    torch.manual_seed(1)
    first, second = replayed([lambda: torch.rand(3)] * 2, device)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(first, second)
    assert torch.equal(first, torch.rand(3))
    assert torch.equal(after, torch.rand(3))
