"""The masker of a configuration: what the trainer gets, from every configuration file, and what is refused."""

from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mlm_masking.fairseq_compat import fairseq_mask
from mlm_masking.masker import build_masker
from mlm_masking.masking import mask_uniform
from mlm_masking.rates import Rates, copies_needed, read_schedule
from mlm_masking.vocabulary import Vocabulary
from shared import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
SIZE, LENGTH = 60, 64
BEGINS = np.arange(SIZE) % 3 != 0
BEGINS[:4] = True
VOCABULARY = Vocabulary(SIZE, mask_id=SIZE - 1, word_begin=BEGINS)


def compose(*overrides: str):
    """The groups `masking`, `replace` and `rates` as the command line puts them together."""
    chosen = {"masking": "uniform", "replace": "mask_only", "rates": "tied"}
    rest = []
    for override in overrides:
        name, value = override.split("=", 1)
        if name in chosen:
            chosen[name] = value
        else:
            rest.append(override)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(None, [f"+{group}={name}" for group, name in chosen.items()] + rest)


def masker(*overrides: str, vocabulary: Vocabulary = VOCABULARY, seed: int | None = None):
    return build_masker(compose(*overrides), vocabulary, seed)


def batch(rows: int = 256) -> torch.Tensor:
    ids = np.random.default_rng(0).integers(4, SIZE - 1, (rows, LENGTH))
    ids[:, 0], ids[:, 40] = 0, 2
    return torch.from_numpy(ids)


def same(one, other) -> bool:
    names = ("input_ids", "attention_mask", "labels")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


# --------------------------------------------------------------------------------------------------- the batch


@pytest.mark.parametrize("masking", ["uniform", "bernoulli", "span_t5", "whole_word"])
@pytest.mark.parametrize("replace", ["mask_only", "p801010", "same5", "rand5"])
def test_every_configuration_gives_a_batch_to_train_on(masking, replace):
    make, ids = masker(f"masking={masking}", f"replace={replace}"), batch()
    ids[:, 50:][::2] = 1
    before = ids.clone()
    out = make(ids, torch.arange(256), epoch=0)
    assert torch.equal(ids, before)
    assert all(each.dtype == torch.int64 and each.shape == ids.shape for each in (out.input_ids, out.labels))
    assert torch.equal(out.attention_mask, (ids != 1).long())
    predicted = out.labels != -100
    assert torch.equal(out.labels[predicted], ids[predicted]) and not predicted[ids == 1].any()
    assert torch.equal(out.input_ids[~predicted], ids[~predicted])
    assert make.counts.prediction_rate == pytest.approx(0.4, abs=0.03)
    shares = {"mask_only": (0, 0), "p801010": (0.1, 0.1), "same5": (0.05, 0), "rand5": (0, 0.05)}[replace]
    hidden, kept = (out.input_ids[predicted] == SIZE - 1), out.input_ids[predicted] == ids[predicted]
    assert hidden.float().mean().item() == pytest.approx(1 - sum(shares), abs=0.03)
    assert kept.float().mean().item() == pytest.approx(shares[0], abs=0.03)
    assert make.counts.corruption_rate == pytest.approx(make.counts.prediction_rate * (1 - shares[0]), abs=0.02)


@pytest.mark.parametrize("masking", ["uniform", "bernoulli", "span_t5", "whole_word"])
def test_masks_do_not_depend_on_batch_worker_or_resumption(masking):
    overrides = (f"masking={masking}", "replace=p801010")
    ids, index = batch(), torch.arange(256) * 7
    whole = masker(*overrides)(ids, index, epoch=3)
    order = torch.randperm(256)
    for part in order.split(37):  # other batches, in another order, by a masker that has done nothing before
        out = masker(*overrides)(ids[part], index[part], epoch=3)
        assert torch.equal(out.input_ids, whole.input_ids[part]) and torch.equal(out.labels, whole.labels[part])
    assert not torch.equal(masker(*overrides)(ids, index, epoch=4).labels, whole.labels)
    assert not torch.equal(masker(*overrides, seed=2)(ids, index, epoch=3).labels, whole.labels)


def test_a_padded_row_is_masked_as_it_would_be_without_its_padding():
    ids = batch(8)
    padded = torch.cat([ids[:, :30], torch.ones(8, 20, dtype=torch.int64)], 1)
    for masking in ("uniform", "span_t5", "whole_word"):
        make = masker(f"masking={masking}", "replace=p801010")
        short, long = make(ids[:, :30], torch.arange(8), 0), make(padded, torch.arange(8), 0)
        assert torch.equal(short.input_ids, long.input_ids[:, :30]) and torch.equal(short.labels, long.labels[:, :30])


def test_uniform_is_mask_uniform():
    ids = batch()
    out = masker("replace=p801010", "masking.rate=0.3", seed=5)(ids, torch.arange(256), 2)
    options = {"mask_id": SIZE - 1, "pad_id": 1, "vocab_size": SIZE, "p_same": 0.1, "p_random": 0.1}
    corrupted, target = mask_uniform(ids.numpy(), 0.3, 5, 2, np.arange(256), ignore_id=-100, **options)
    assert (out.input_ids.numpy() == corrupted).all() and (out.labels.numpy() == target).all()


def test_numpy_and_torch_batches_are_taken_alike():
    ids = batch()
    assert same(masker()(ids, torch.arange(256), 0), masker()(ids.numpy(), np.arange(256), 0))


@pytest.mark.gpu
@pytest.mark.parametrize("masking", ["uniform", "bernoulli", "span_t5", "whole_word"])
def test_masks_made_on_a_gpu_are_those_made_on_a_cpu(masking):
    ids, index = batch(), torch.arange(256)
    here = masker(f"masking={masking}", "replace=p801010")(ids, index, 0)
    there = masker(f"masking={masking}", "replace=p801010")(ids.cuda(), index.cuda(), 0)
    assert there.input_ids.is_cuda
    assert torch.equal(here.input_ids, there.input_ids.cpu()) and torch.equal(here.labels, there.labels.cpu())


def test_counts_start_anew():
    make = masker("masking.rate=0.15")
    make(batch(), torch.arange(256), 0)
    assert make.reset_counts().prediction_rate == pytest.approx(0.15, abs=1 / 64)
    assert make.counts.prediction_rate == 0


def test_the_seed_is_the_masking_groups_then_the_runs():
    ids, index = batch(), torch.arange(256)
    cfg = OmegaConf.merge({"seed": 9}, compose())
    of_run = build_masker(cfg, VOCABULARY)
    assert of_run.seed == 9 and same(of_run(ids, index, 0), masker(seed=9)(ids, index, 0))
    assert build_masker(OmegaConf.merge(cfg, {"masking": {"seed": 4}}), VOCABULARY).seed == 4


def test_the_strategy_may_be_named_instead_of_its_file():
    ids, index = batch(), torch.arange(256)
    assert same(masker("masking.strategy=span_t5")(ids, index, 0), masker("masking=span_t5")(ids, index, 0))


# ----------------------------------------------------------------------------------------------- compatibility


@pytest.mark.parametrize(("compat", "python"), [("fairseq", "3.8"), ("fairseq_py37", "3.7")])
def test_fairseq_masks_are_the_releases_from_its_first_epoch_on(compat, python):
    ids = batch(12)
    ids[3, 20:] = 1
    out = masker(f"masking.compat={compat}", "replace=p801010")(ids, torch.arange(40, 52), epoch=0)
    options = {"mask_id": SIZE - 1, "vocab_size": SIZE, "p_same": 0.1, "p_random": 0.1, "pad_id": -100}
    for row in range(12):
        length = 20 if row == 3 else LENGTH
        key = {"seed": 1, "epoch": 1, "index": 40 + row}
        expected = fairseq_mask(ids[row, :length].numpy(), rate=0.4, python=python, **key, **options)
        assert (out.input_ids[row, :length].numpy() == expected[0]).all()
        assert (out.labels[row, :length].numpy() == expected[1]).all()
        assert (out.labels[row, length:] == -100).all() and (out.input_ids[row, length:] == 1).all()


def test_hf_protects_special_tokens_and_draws_each_token_for_itself():
    out = masker("masking.compat=hf", "replace=rand5", "replace.p_random=1.0")(batch(4000), torch.arange(4000), 0)
    predicted = out.labels != -100
    assert not predicted[:, [0, 40]].any()
    counts = predicted.sum(1).double()
    assert counts.mean().item() == pytest.approx(0.4 * 62, abs=0.3)
    assert counts.var().item() == pytest.approx(62 * 0.24, rel=0.1)
    assert set(out.input_ids[predicted].tolist()) == set(range(SIZE))  # as its collator: from all ids


def test_release_masks_the_first_token_and_protection_does_not():
    ids, index = batch(4000), torch.arange(4000)
    release, protected = (masker(f"masking.protect_special={value}")(ids, index, 0) for value in ("false", "true"))
    assert (release.labels[:, 0] != -100).double().mean().item() == pytest.approx(0.4, abs=0.03)
    assert not (protected.labels[:, [0, 40]] != -100).any()
    assert (protected.labels != -100).sum(1).double().mean().item() == pytest.approx(0.4 * 62, abs=0.05)


# ------------------------------------------------------------------------------------------------------- rates


def decoupled(corruption: object, prediction: object, *more: str):
    return masker("rates=decoupled", f"rates.corruption={corruption}", f"rates.prediction={prediction}", *more)


@pytest.mark.parametrize("masking", ["uniform", "bernoulli", "span_t5", "whole_word"])
@pytest.mark.parametrize(("corruption", "prediction", "copies"), [(0.05, 0.4, 8), (0.15, 0.4, 3), (0.2, 0.4, 2)])
def test_more_prediction_takes_disjoint_copies(masking, corruption, prediction, copies):
    make, ids = decoupled(corruption, prediction, f"masking={masking}"), batch()
    out = make(ids, torch.arange(256), 0)
    assert out.input_ids.shape == out.attention_mask.shape == out.labels.shape == (256 * copies, LENGTH)
    assert make.copies() == copies
    predicted = (out.labels != -100).reshape(copies, 256, LENGTH)
    assert predicted.sum(0).max() == 1
    assert torch.equal(
        out.input_ids.reshape(copies, 256, LENGTH)[predicted], torch.full((int(predicted.sum()),), SIZE - 1)
    )
    assert torch.equal((out.input_ids == SIZE - 1), (out.labels != -100))
    # Whole words: the rate is one of words, and words differ in length.
    assert make.counts.prediction_rate == pytest.approx(prediction, abs=0.02)
    assert make.counts.corruption_rate == pytest.approx(prediction / copies, abs=0.02)


@pytest.mark.parametrize("masking", ["uniform", "span_t5", "whole_word"])
def test_less_prediction_leaves_a_part_of_the_corrupted_unpredicted(masking):
    make, ids = decoupled(0.4, 0.2, f"masking={masking}"), batch()
    out = make(ids, torch.arange(256), 0)
    hidden, predicted = out.input_ids == SIZE - 1, out.labels != -100
    assert out.input_ids.shape == ids.shape and not (predicted & ~hidden).any()
    assert make.counts.corruption_rate == pytest.approx(0.4, abs=0.02)
    assert make.counts.prediction_rate == pytest.approx(0.2, abs=0.02)


def test_equal_rates_are_the_ordinary_case():
    ids, index = batch(), torch.arange(256)
    assert same(decoupled(0.4, 0.4)(ids, index, 0), masker()(ids, index, 0))


def test_one_rate_alone_leaves_the_other_at_the_masking_rate():
    make = masker("rates.prediction=0.2")
    assert make.rates.at(0) == (0.4, 0.2)


@pytest.mark.parametrize(
    ("corruption", "prediction", "copies"),
    [(0.15, 0.45, 3), (0.1, 0.3, 3), (0.2, 0.6, 3), (0.05, 0.4, 8), (0.4, 0.15, 1), (0.15, 0.46, 4), (0.5, 1.0, 2)],
)
def test_copies_are_counted_in_spite_of_floats(corruption, prediction, copies):
    assert copies_needed(corruption, prediction) == copies


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("linear(0.30->0.15)", (0.30, 0.225, 0.15)),
        (" linear ( 0.3 -> 0.15 ) ", (0.30, 0.225, 0.15)),
        ("cosine(0.30->0.10)", (0.30, 0.20, 0.10)),
        ("step(0.30->0.15@0.6)", (0.30, 0.30, 0.15)),
        ("step(0.30->0.15)", (0.30, 0.15, 0.15)),
        (0.4, (0.4, 0.4, 0.4)),
        ("0.4", (0.4, 0.4, 0.4)),
    ],
)
def test_schedules(text, values):
    schedule = read_schedule("masking.schedule", text)
    assert [schedule.at(progress) for progress in (0, 0.5, 1)] == pytest.approx(values)


def test_a_cosine_is_slow_at_both_ends():
    schedule = read_schedule("masking.schedule", "cosine(0.3->0.1)")
    assert schedule.at(0.1) > 0.29 and schedule.at(0.9) < 0.11


def test_the_rate_follows_the_run():
    make, ids = masker("masking.schedule='linear(0.30->0.15)'"), batch()
    for progress, rate in ((0.0, 0.30), (0.5, 0.225), (1.0, 0.15)):
        make.reset_counts()
        make(ids, torch.arange(256), 0, progress)
        assert make.counts.prediction_rate == pytest.approx(rate, abs=1 / 128)


def test_tied_rates():
    assert Rates.tied(0.4).at(0.3) == (0.4, 0.4) and not Rates.tied(0.4).decoupled


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["masking.rate=0"], r"masking\.rate=0 "),
        (["masking.rate=1"], r"masking\.rate=1 "),
        (["masking.rate=40"], r"masking\.rate=40 .*40 % is 0\.4"),
        (["masking.rate=null"], r"masking\.rate=None"),
        (["masking.schedule=often"], r"masking\.schedule='often'"),
        (["masking.schedule='linear(0.3->1.5)'"], r"masking\.schedule=1\.5"),
        (["masking.schedule='linear(0.3->0.15@0.5)'"], "step"),
        (["masking.schedule='step(0.3->0.15@2)'"], r"the step is at 2\.0"),
        (["masking.strategy=salient"], r"masking\.strategy=salient is not one of"),
        (["masking.compat=jax"], r"masking\.compat=jax is not one of"),
        (["masking.compat=fairseq", "masking=span_t5"], r"masking\.compat=fairseq with masking\.strategy=span_t5"),
        (["masking.compat=hf", "masking=whole_word"], r"masking\.compat=hf"),
        (["masking.compat=fairseq", "rates.prediction=0.2"], "one rate for corruption and prediction"),
        (["masking.compat=fairseq", "masking.protect_special=true"], r"masking\.protect_special=true"),
        (["masking=span_t5", "masking.rate=0.8"], r"masking\.rate=0\.8 with spans"),
        (["masking=span_t5", "rates=decoupled", "rates.corruption=0.2", "rates.prediction=0.8"], "with spans"),
        (["masking=pmi"], r"masking\.ngrams is missing"),
        (["masking=pmi", "masking.ngrams=nowhere.txt"], r"masking\.ngrams=nowhere\.txt: no such file"),
        (["replace.p_same=0.7", "replace.p_random=0.7"], "add up to 1.4"),
        (["replace.p_same=2"], "p_same=2"),
        (["replace.frequencies=nowhere.txt"], r"replace\.frequencies=nowhere\.txt"),
        (["rates=decoupled", "rates.corruption=0.2", "rates.prediction=1.2"], r"rates\.prediction=1\.2"),
        (["rates=decoupled", "rates.corruption=0", "rates.prediction=0.4"], r"rates\.corruption=0 "),
        (["rates=decoupled", "rates.corruption=0.04", "rates.prediction=0.4"], r"10 copies .* rates\.max_copies=8"),
        (["rates.prediction=0.8"], r"2 copies .* rates\.max_copies=1"),
    ],
)
def test_settings_that_cannot_be_are_named(overrides, names):
    with pytest.raises(InputError, match=names):
        masker(*overrides)


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (torch.tensor([[0, SIZE]]), f"{SIZE} is not in the vocabulary"),
        (torch.tensor([[0, -1]]), "-1 is not in the vocabulary"),
        (torch.tensor([[0, SIZE - 1, 5]]), "holds <mask>"),
        (torch.tensor([[0]]), "at least 2"),
        (torch.tensor([0, 5, 6]), "one per row"),
    ],
)
def test_data_that_cannot_be_masked_is_refused(ids, names):
    with pytest.raises(InputError, match=names):
        masker()(ids, torch.zeros(1, dtype=torch.int64), 0)


def test_masks_without_a_token_are_warned_of_once(caplog):
    make = masker("masking.rate=0.01")
    for _ in range(3):
        make(batch(4), torch.arange(4), 0)
    assert caplog.text.count("no masked token") == 1 and "36 % of the blocks" in caplog.text


def test_whole_words_need_to_know_where_words_begin():
    with pytest.raises(InputError, match="which tokens begin a word"):
        masker("masking=whole_word", vocabulary=Vocabulary(SIZE, mask_id=SIZE - 1))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"mask_id": 60}, "mask_id=60"),
        ({"mask_id": 1}, "not distinct"),
        ({"word_begin": np.ones(3, bool)}, "3 entries"),
    ],
)
def test_a_vocabulary_must_hold_together(change, names):
    with pytest.raises(InputError, match=names):
        Vocabulary(**({"size": SIZE, "mask_id": SIZE - 1} | change))


def test_fairseq_needs_the_releases_ids():
    with pytest.raises(InputError, match="at ids 0 to 3"):
        masker("masking.compat=fairseq", vocabulary=Vocabulary(SIZE, 10, 11, 12, 13, mask_id=SIZE - 1))


def test_random_ids_follow_frequencies(tmp_path):
    counts = np.zeros(SIZE)
    counts[[7, 8]] = 3, 1
    np.savetxt(tmp_path / "counts.txt", counts)
    for compat in ("native", "fairseq"):
        overrides = ("replace.p_random=1.0", f"replace.frequencies={tmp_path}/counts.txt", f"masking.compat={compat}")
        out = masker(*overrides)(batch(), torch.arange(256), 0)
        drawn = out.input_ids[out.labels != -100]
        assert set(drawn.tolist()) == {7, 8}
        assert (drawn == 7).double().mean().item() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("content", ["1\n2\n", "\n".join(["-1"] * SIZE), "\n".join(["0"] * SIZE), "a\nb\n"])
def test_frequencies_that_are_none_are_refused(tmp_path, content):
    (tmp_path / "counts.txt").write_text(content)
    with pytest.raises(InputError, match=r"replace\.frequencies"):
        masker("replace.p_random=0.1", f"replace.frequencies={tmp_path}/counts.txt")


# -------------------------------------------------------------------------------------------------- vocabulary


def test_a_tokenizer_tells_its_special_ids_and_word_begins(tokenizer):
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.special_ids == (0, 1, 2, 3) and vocabulary.mask_id == tokenizer.mask_token_id
    assert vocabulary.size == max(tokenizer.get_vocab().values()) + 1
    assert vocabulary.word_begin[:4].all()
    tokens = tokenizer.convert_ids_to_tokens(list(range(4, vocabulary.size - 1)))
    assert [token.startswith("Ġ") for token in tokens] == vocabulary.word_begin[4:-1].tolist()
    word = tokenizer.encode(" river", add_special_tokens=False)
    assert b"".join(vocabulary.texts[each] for each in word) == b"river"


def test_a_vocabulary_may_be_padded_to_the_models_size(tokenizer):
    assert Vocabulary.from_tokenizer(tokenizer, size=512).size == 512
    assert len(Vocabulary.from_tokenizer(tokenizer, size=512).texts) == 512


def test_a_tokenizer_without_a_mask_is_refused():
    from tokenizers import Tokenizer, models

    with pytest.raises(InputError, match="no <s>"):
        Vocabulary.from_tokenizer(Tokenizer(models.BPE()))


@pytest.mark.mirror
def test_the_released_vocabulary(mirror):
    from mlm_masking.tokenizer import load_tokenizer

    vocabulary = Vocabulary.from_tokenizer(load_tokenizer(mirror / "mlm-masking" / "roberta-tokenizer"))
    assert (vocabulary.size, vocabulary.mask_id) == (50265, 50264)
    assert vocabulary.texts[5] == b"the" and vocabulary.word_begin[5] and not vocabulary.word_begin[4]
