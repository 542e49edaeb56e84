"""Batches without padding give the results and gradients of padded ones; batch orders cover every row once."""

import numpy as np
import pytest
import torch

from mlm_masking.encoders import load_model
from mlm_masking.length_buckets import WINDOW_BATCHES, epoch_batches, padded_share, token_batches
from mlm_masking.padding_free import IMPLEMENTATION, Layout, Padded, PaddingFree, attention_of
from mlm_masking.sequences import cut_pair, encode, joined, special_tokens
from shared import InputError


def some_rows(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(4, 300, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("lengths", [(5, 9, 3, 17, 9, 30), (7,), (6, 6, 6)])
def test_hidden_states_are_those_of_each_row_alone(make_checkpoint, norm, lengths):
    model = load_model(make_checkpoint(norm), "none", device="cpu").eval()
    rows = some_rows(lengths)
    for kind in (PaddingFree, Padded):
        batch = kind(rows, model)
        hidden = batch.hidden(model)
        for row, start, length in zip(rows, batch.starts.tolist(), batch.lengths, strict=True):
            alone = model(input_ids=torch.from_numpy(row.astype(np.int64))[None]).last_hidden_state[0]
            torch.testing.assert_close(hidden[start : start + length], alone, rtol=0, atol=2e-5)


def test_gradients_are_those_of_the_padded_batch(make_checkpoint):
    folder = make_checkpoint(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = load_model(folder, "classification", outputs=2, device="cpu").train()
    rows = some_rows((5, 9, 3, 17, 9, 30, 4))
    gradients = []
    for kind in (PaddingFree, Padded):
        model.zero_grad()
        batch = kind(rows, model)
        model.classifier(batch.hidden(model)[batch.starts][:, None]).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 30
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7, msg=name)


def test_rows_do_not_see_each_other(checkpoint):
    model = load_model(checkpoint, "none", device="cpu").eval()
    rows = some_rows((12, 20, 7))
    first = PaddingFree(rows, model)
    changed = PaddingFree([rows[0], rows[1][::-1].copy(), rows[2]], model)
    before, after = first.hidden(model), changed.hidden(model)
    for row in (0, 2):
        span = slice(int(first.starts[row]), int(first.starts[row]) + len(rows[row]))
        torch.testing.assert_close(before[span], after[span], rtol=0, atol=1e-6)
    start = int(first.starts[1])
    assert (before[start] - after[start]).abs().max() > 1e-3


def test_every_position_of_the_layout_is_a_token_or_masked():
    lengths = np.array([2, 3, 3, 8, 9])
    layout = Layout(lengths, 2, torch.device("cpu"))
    assert sorted(layout.source[layout.real].tolist()) == list(range(25))
    assert [(rows, longest) for rows, longest, _ in layout.shapes] == [(3, 3), (2, 9)]
    assert sum(int(mask.sum()) for _, _, mask in layout.shapes) == 25


def test_the_models_own_attention_comes_back(checkpoint):
    model = load_model(checkpoint, "none", device="cpu")
    before = model.config._attn_implementation
    with attention_of(model, IMPLEMENTATION):
        assert model.config._attn_implementation == IMPLEMENTATION != before
    assert model.config._attn_implementation == before


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("order", ["random", "bucketed"])
def test_an_epoch_holds_every_row_once_and_one_short_batch(order):
    lengths = np.random.default_rng(0).integers(3, 60, 1003)
    batches = epoch_batches(lengths, 32, order, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert [len(batch) for batch in batches] == [32] * 31 + [11]


def test_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(3, 60, 300)
    for order in ("random", "bucketed"):
        first = np.concatenate(epoch_batches(lengths, 16, order, seed=1, epoch=2))
        assert np.array_equal(first, np.concatenate(epoch_batches(lengths, 16, order, seed=1, epoch=2)))
        for seed, epoch in ((2, 2), (1, 3)):
            assert not np.array_equal(first, np.concatenate(epoch_batches(lengths, 16, order, seed, epoch)))


def test_buckets_take_the_padding_away():
    lengths = np.random.default_rng(0).integers(3, 60, 32 * WINDOW_BATCHES)
    random, bucketed = (
        padded_share(lengths, epoch_batches(lengths, 32, order, 1, 0)) for order in ("random", "bucketed")
    )
    assert random > 0.4 and bucketed < 0.05


def test_token_batches_hold_their_tokens_and_long_rows_stand_alone():
    lengths = np.array([5, 100, 7, 30, 30, 2])
    batches = token_batches(lengths, 64)
    assert [batch.tolist() for batch in batches] == [[1], [3, 4], [2, 0, 5]]


@pytest.mark.parametrize(("size", "order"), [(0, "random"), (4, "sorted")])
def test_impossible_batches_are_refused(size, order):
    with pytest.raises(InputError):
        epoch_batches(np.array([1, 2, 3]), size, order, 0, 0)


# ----------------------------------------------------------------------------------------------------------- sequences


def test_sentences_and_pairs_are_framed_as_in_the_release(tokenizer):
    special = special_tokens(tokenizer)
    ids = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    other = tokenizer("a dog", add_special_tokens=False)["input_ids"]
    single = encode(tokenizer, [" the cat "], limit=64)
    pair = encode(tokenizer, ["the cat"], ["a dog"], limit=64)
    assert single[0].tolist() == [0, *ids, 2] and special.mask == tokenizer.mask_token_id
    assert pair[0].tolist() == [0, *ids, 2, 2, *other, 2]


def test_long_rows_are_cut_and_counted(tokenizer):
    text = "the cat sat on the mat . " * 20
    rows = encode(tokenizer, [text, "a dog"], limit=16)
    assert rows.lengths.tolist()[0] == 16 and rows.truncated == 1 and rows[0][-1] == 2
    assert rows.statistics(trained_length=8)["beyond_trained_length"] == 0.5


def test_a_pair_is_cut_from_its_longer_side():
    assert cut_pair([1] * 10, [2] * 4, 9) == ([1] * 5, [2] * 4)
    assert cut_pair([1] * 4, [2] * 10, 9) == ([1] * 4, [2] * 5)
    for a, b, room in ((10, 10, 9), (3, 9, 5), (9, 3, 5), (2, 2, 4), (7, 6, 5)):
        first, second = cut_pair([1] * a, [2] * b, room)
        assert len(first) + len(second) == min(room, a + b) and abs(len(first) - len(second)) <= max(1, abs(a - b))


def test_ids_beyond_the_embedding_and_limits_without_room_are_refused(tokenizer):
    with pytest.raises(InputError, match="beyond the model's 50 embeddings"):
        encode(tokenizer, ["the house is red"], limit=64, vocab_size=50)
    with pytest.raises(InputError, match="no room"):
        encode(tokenizer, ["a"], ["b"], limit=4)


def test_rows_lie_in_one_array():
    rows = joined([np.array([1, 2]), np.array([3]), np.array([4, 5, 6])])
    assert rows.ids.tolist() == [1, 2, 3, 4, 5, 6] and rows.offsets.tolist() == [0, 2, 3, 6]
    assert [row.tolist() for row in rows.rows([2, 0])] == [[4, 5, 6], [1, 2]]
