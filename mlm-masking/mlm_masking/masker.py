"""Batches for the trainer: token ids in; what the model sees and what it must predict out.

    masker = build_masker(cfg, vocabulary)
    batch = masker(input_ids, index, epoch)        # MaskedBatch of int64 torch tensors

A mask is a function of (seed, epoch, index) and the row alone: it does not depend on the batch, the worker, the rank
or on what was masked before, so a run that resumes at any example goes on with the masks it would have had.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mlm_masking.arrays import Array, is_torch, table_like, where
from mlm_masking.fairseq_compat import fairseq_mask
from mlm_masking.masking import (
    Order,
    bernoulli_order,
    check_keys,
    maskable_positions,
    masked_sets,
    uniform_order,
)
from mlm_masking.ngrams import Segmenter, read_ngrams
from mlm_masking.rates import Rates, copies_needed, read_schedule
from mlm_masking.replacement import Replacement, drawable_ids
from mlm_masking.spans import MEAN_SPAN, check_span_rate, span_order
from mlm_masking.vocabulary import Vocabulary, check_ids
from mlm_masking.whole_words import unit_order, word_begins
from shared import InputError

log = logging.getLogger(__name__)

__all__ = ["Counts", "MaskedBatch", "Masker", "Vocabulary", "build_masker"]

STRATEGIES = ("uniform", "bernoulli", "span_t5", "pmi", "whole_word")
COMPAT = ("native", "fairseq", "fairseq_py37", "hf")
NOT_PREDICTED = -100


@dataclass(frozen=True)
class MaskedBatch:
    """What a step trains on; `copies * rows` rows, copy after copy, each `(copies * rows, length)` int64.

    input_ids: corrupted. attention_mask: 1 for tokens, 0 for padding. labels: the original id where it is to be
    predicted, else -100.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


@dataclass
class Counts:
    """What was really masked, for logs. Numbers, or tensors of one on the device where masks are made."""

    tokens: Any = 0  # of the data, each sequence once, without padding
    shown: Any = 0  # that the model reads: `tokens` times the copies
    corrupted: Any = 0  # of these, hidden or replaced; a token kept by `p_same` is neither
    predicted: Any = 0

    @property
    def corruption_rate(self) -> float:
        """Share of what the model reads that is hidden or replaced: m_corr (1 - p_same)."""
        return int(self.corrupted) / max(1, int(self.shown))

    @property
    def prediction_rate(self) -> float:
        """Predicted tokens per token of the data: m_pred."""
        return int(self.predicted) / max(1, int(self.tokens))


@dataclass
class Masker:
    """Corrupts batches. Built by `build_masker`; the fields are the settings, checked.

    Attributes:
        counts: what was masked since the last `reset_counts`.
    """

    vocabulary: Vocabulary
    rates: Rates
    replacement: Replacement
    strategy: str = "uniform"
    compat: str = "native"
    seed: int = 1
    protect_special: bool = False
    mean_span: float = 3.0
    segmenter: Any = None  # ngrams.Segmenter, for strategy "pmi"

    def __post_init__(self) -> None:
        self.counts = Counts()
        self._warned = False
        special = (*self.vocabulary.special_ids, self.vocabulary.mask_id)
        self._protected = tuple(sorted(special)) if self.protect_special else (self.vocabulary.pad_id,)

    def __call__(
        self, input_ids: Tensor | np.ndarray, index: Tensor | np.ndarray, epoch: int, progress: float = 0.0
    ) -> MaskedBatch:
        """Mask a batch.

        Args:
            input_ids: `(rows, length)` int64, padded with `pad_id`; on the device where the masks are to be made.
            index: `(rows,)` int64, each row's place in the data set.
            epoch: passes over the data that are done; the first pass is 0.
            progress: share of the run that is done, for schedules.
        Raises:
            InputError: ids that are not the vocabulary's, `<mask>` among them, or fewer than 2 columns.
        """
        ids, index = _library(input_ids, index)
        check_keys(self.seed, epoch, index, ids)
        check_ids(ids, self.vocabulary.mask_id, self.vocabulary.size)
        corruption, prediction = self.rates.at(progress)
        self._warn_of_empty_masks(corruption, ids.shape[1])
        if self.compat.startswith("fairseq"):
            copies = [self._fairseq(ids, index, epoch, corruption)]
        else:
            copies = self._native(ids, index, epoch, corruption, prediction)
        present = ids != self.vocabulary.pad_id
        self._count(ids, present, copies)
        inputs, labels = ([_tensor(copy[part]) for copy in copies] for part in (0, 1))
        attention = _tensor(present).to(torch.int64)
        if len(copies) == 1:
            return MaskedBatch(inputs[0], attention, labels[0])
        return MaskedBatch(torch.cat(inputs), attention.repeat(len(copies), 1), torch.cat(labels))

    def reset_counts(self) -> Counts:
        """Start counting anew; returns what was counted so far."""
        done, self.counts = self.counts, Counts()
        return done

    def copies(self, progress: float = 0.0) -> int:
        """Rows of a masked batch per row of the data."""
        return copies_needed(*self.rates.at(progress))

    def order(self, ids: Array, index: Array, epoch: int, rate: float) -> Order:
        """The strategy's order of the batch's tokens; spans are drawn at `rate`."""
        maskable = maskable_positions(ids, self._protected)
        key = (self.seed, epoch, index)
        if self.strategy == "uniform":
            return uniform_order(*key, ids.shape[1], maskable)
        if self.strategy == "bernoulli":
            return bernoulli_order(*key, ids.shape[1], maskable)
        if self.strategy == "span_t5":
            return span_order(*key, ids.shape[1], rate, self.mean_span, maskable)
        if self.strategy == "whole_word":
            return unit_order(*key, word_begins(ids, self.vocabulary.word_begin), maskable)
        begins = self.segmenter.unit_begins(*key, ids)
        return unit_order(*key, begins, maskable, count_tokens=True)

    def _native(self, ids: Array, index: Array, epoch: int, corruption: float, prediction: float) -> list:
        """(corrupted ids, labels) of every copy."""
        order = self.order(ids, index, epoch, max(corruption, prediction))
        sets = masked_sets(order, corruption, prediction)
        union = sets[0][0]
        for chosen, _ in sets[1:]:
            union = union | chosen
        replaced = self.replacement.corrupt(ids, union, self.seed, epoch, index, order.unit)
        inputs = [replaced] if len(sets) == 1 else [where(chosen, replaced, ids) for chosen, _ in sets]
        labels = [where(predicted, ids, NOT_PREDICTED) for _, predicted in sets]
        return list(zip(inputs, labels, strict=True))

    def _fairseq(self, ids: Array, index: Array, epoch: int, rate: float) -> tuple[Array, Array]:
        """The authors' release's masks, row by row; padding is not part of a row."""
        rows = ids.cpu().numpy() if is_torch(ids) else ids
        corrupted, labels = rows.copy(), np.full_like(rows, NOT_PREDICTED)
        for row, (tokens, place) in enumerate(zip(rows, index.tolist(), strict=True)):
            length = int(np.flatnonzero(tokens != self.vocabulary.pad_id)[-1]) + 1
            new, target = fairseq_mask(
                tokens[:length],
                rate=rate,
                seed=self.seed,
                epoch=epoch + 1,  # it counts passes from 1
                index=place,
                p_same=self.replacement.p_same,
                p_random=self.replacement.p_random,
                mask_id=self.vocabulary.mask_id,
                pad_id=NOT_PREDICTED,
                vocab_size=self.vocabulary.size,
                python="3.7" if self.compat == "fairseq_py37" else "3.8",
                weights=self.replacement.weights,
            )
            corrupted[row, :length], labels[row, :length] = new, target
        return (table_like(corrupted, ids), table_like(labels, ids))

    def _count(self, ids: Array, present: Array, copies: list) -> None:
        counts, tokens = self.counts, present.sum()
        counts.tokens += tokens
        counts.shown += tokens * len(copies)
        counts.corrupted += sum((corrupted != ids).sum() for corrupted, _ in copies)
        counts.predicted += sum((labels != NOT_PREDICTED).sum() for _, labels in copies)

    def _warn_of_empty_masks(self, rate: float, length: int) -> None:
        if rate * length < 1 and not self._warned:
            self._warned = True
            log.warning(
                "masking.rate=%g of %d tokens is less than one: %.0f %% of the blocks have no masked token, no loss",
                rate,
                length,
                100 * (1 - rate * length),
            )


def _library(input_ids: Tensor | np.ndarray, index: Tensor | np.ndarray) -> tuple[Array, Array]:
    """Ids and indices as int64 arrays: torch on a GPU, numpy (without a copy) on a CPU."""
    if is_torch(input_ids) and input_ids.device.type != "cpu":
        return input_ids.to(torch.int64), torch.as_tensor(index).to(input_ids.device, torch.int64)
    return np.asarray(input_ids, np.int64), np.asarray(index.cpu() if is_torch(index) else index, np.int64)


def _tensor(array: Array) -> Tensor:
    return array if is_torch(array) else torch.from_numpy(np.ascontiguousarray(array))


# ------------------------------------------------------------------------------------------- from the configuration


def build_masker(cfg: Any, vocabulary: Vocabulary, seed: int | None = None) -> Masker:
    """The masker of a configuration with the nodes `masking`, `replace` and `rates`.

    Args:
        cfg: a DictConfig or dict; its other nodes are not looked at, but for `seed`.
        seed: of the masks; default `masking.seed`, else `cfg.seed`, else 1.
    Raises:
        InputError: what cannot be masked as asked, with the field to change.
    """
    nodes = OmegaConf.to_container(OmegaConf.create(cfg), resolve=False) if not isinstance(cfg, DictConfig) else cfg
    masking, replace, rates = (dict(nodes.get(name) or {}) for name in ("masking", "replace", "rates"))
    strategy, compat = _strategy(masking)
    for value in (seed, masking.get("seed"), nodes.get("seed"), 1):
        if value is not None:
            seed = value
            break
    masker = Masker(
        vocabulary,
        read_rates(masking, rates),
        _replacement(replace, vocabulary, compat),
        strategy=strategy,
        compat=compat,
        seed=seed,
        protect_special=bool(masking.get("protect_special", False)) or compat == "hf",
        mean_span=float(masking.get("mean_span", MEAN_SPAN)),
        segmenter=_segmenter(masking, vocabulary) if strategy == "pmi" else None,
    )
    _check_together(masker)
    return masker


def _strategy(masking: dict) -> tuple[str, str]:
    """Strategy and compat mode, checked by themselves and against each other."""
    strategy, compat = str(masking.get("strategy", "uniform")), str(masking.get("compat", "native"))
    strategy = {"span": "span_t5"}.get(strategy, strategy)
    if strategy not in STRATEGIES:
        raise InputError(f"masking.strategy={strategy} is not one of {', '.join(STRATEGIES)}")
    if compat not in COMPAT:
        raise InputError(f"masking.compat={compat} is not one of {', '.join(COMPAT)}")
    if compat == "hf" and strategy in ("uniform", "bernoulli"):
        return "bernoulli", compat
    if compat != "native" and strategy != "uniform":
        raise InputError(
            f"masking.compat={compat} with masking.strategy={strategy}: only uniform masking was released that way; "
            "use masking.compat=native"
        )
    return strategy, compat


def read_rates(masking: dict, rates: dict) -> Rates:
    """The rates of a configuration. `rates.corruption` and `rates.prediction` default to the rate of `masking`.

    Raises:
        InputError: what is not a rate, or needs more copies than `rates.max_copies`.
    """
    rate, name = masking.get("schedule"), "masking.schedule"
    if rate is None:
        rate, name = masking.get("rate"), "masking.rate"
    corruption, prediction = rates.get("corruption"), rates.get("prediction")
    own = None if corruption is not None and prediction is not None else read_schedule(name, rate)
    return Rates(
        own if corruption is None else read_schedule("rates.corruption", corruption),
        own if prediction is None else read_schedule("rates.prediction", prediction, may_be_one=True),
        int(rates.get("max_copies", 1)),
    )


def _replacement(replace: dict, vocabulary: Vocabulary, compat: str) -> Replacement:
    """The replacement scheme. Random ids are all but the special ones; Hugging Face's collator draws from all."""
    drawable = drawable_ids(vocabulary.size, () if compat == "hf" else vocabulary.special_ids)
    if compat.startswith("fairseq") and sorted(vocabulary.special_ids) != [0, 1, 2, 3]:
        raise InputError(
            f"masking.compat={compat} needs <s>, <pad>, </s> and <unk> at ids 0 to 3, and this vocabulary has them at "
            f"{vocabulary.special_ids}: use masking.compat=native"
        )
    weights = None
    if replace.get("frequencies"):
        weights = read_frequencies(replace["frequencies"], vocabulary.size)
        if compat.startswith("fairseq"):
            weights[list(vocabulary.special_ids)] = 0  # it draws from all ids, by weight
        else:
            weights = weights[drawable]
    return Replacement(vocabulary.mask_id, drawable, replace.get("p_same", 0.0), replace.get("p_random", 0.0), weights)


def read_frequencies(path: str, size: int) -> np.ndarray:
    """Counts of every id, from a .npy file or text with one number per line.

    Raises:
        InputError: no such file, not `size` numbers, negative ones, or all zero.
    """
    file = Path(path)
    try:
        counts = np.load(file, allow_pickle=False) if file.suffix == ".npy" else np.loadtxt(file, ndmin=1)
    except (OSError, ValueError) as error:
        raise InputError(f"replace.frequencies={path} cannot be read as one number per id: {error}") from None
    if counts.shape != (size,) or not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
        raise InputError(
            f"replace.frequencies={path} has {counts.shape} numbers: it needs {size}, one count per id, none negative "
            "and not all zero"
        )
    return counts.astype(np.float64)


def _segmenter(masking: dict, vocabulary: Vocabulary) -> Segmenter:
    if not masking.get("ngrams"):
        raise InputError(
            "masking.ngrams is missing: masking=pmi needs a list of n-grams; build one with `python -m mlm_masking.pmi "
            "data=<text files>` and give its path"
        )
    return Segmenter(read_ngrams(masking["ngrams"]), vocabulary)


def _check_together(masker: Masker) -> None:
    """What only shows when strategy, rates and vocabulary meet."""
    if masker.strategy == "span_t5":
        check_span_rate(masker.rates.largest, masker.mean_span)
    if masker.strategy == "whole_word" and masker.vocabulary.word_begin is None:
        raise InputError(
            "masking.strategy=whole_word needs to know which tokens begin a word: build the Vocabulary from a "
            "byte-level BPE tokenizer, or use masking=uniform"
        )
    if masker.compat.startswith("fairseq") and masker.rates.decoupled:
        raise InputError(
            f"masking.compat={masker.compat} has one rate for corruption and prediction: leave rates.corruption and "
            "rates.prediction out (rates=tied), or use masking.compat=native"
        )
    if masker.compat.startswith("fairseq") and masker.protect_special:
        raise InputError(
            f"masking.protect_special=true with masking.compat={masker.compat}: the release masks special tokens like "
            "any other; use masking.compat=native to protect them"
        )
