"""The loss on held-out text, at the model's own rate and at fixed ones, under masks that never change.

Losses at a model's own rate cannot be compared across rates: the more is hidden, the harder the task. So every model
is also asked at 15, 40 and 80 %, the same blocks and masks for all of them, drawn by a seed of their own and
replaced by <mask> only. Beside them stands the loss of a model that knows how frequent every token is and nothing
else: while a run is near it, it has learned nothing of context.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlm_masking.data import BlockDataset
from mlm_masking.loss import bits_and_perplexity
from mlm_masking.masker import MaskedBatch, Masker, build_masker
from mlm_masking.micro_batches import pad
from mlm_masking.model import predicted
from mlm_masking.vocabulary import Vocabulary

# Tokens counted for the unigram distribution, at most: 64 M give its entropy to the fourth digit.
COUNTED = 2**26
OWN = "own"


class HeldOut:
    """Masked held-out blocks.

    Args:
        blocks: the held-out text. count: blocks of it, evenly spaced; None takes all.
        own: the model's own masker. rates: fixed ones.
        seed: of the masks; the same for all models that are to be compared.
        rows: blocks of a forward pass.
    """

    def __init__(
        self,
        blocks: BlockDataset,
        vocabulary: Vocabulary,
        own: Masker,
        *,
        rates: Sequence[float] = (0.15, 0.4, 0.8),
        count: int | None = None,
        seed: int = 0,
        rows: int = 64,
    ):
        count = len(blocks) if count is None else min(count, len(blocks))
        self.index = np.unique(np.linspace(0, len(blocks) - 1, count).astype(np.int64))
        self.blocks, self.rows = blocks, rows
        fixed = {name_of(rate): _mask_only(vocabulary, rate, seed) for rate in rates}
        self.maskers = {OWN: own, **fixed}
        self._masked: dict[str, list[MaskedBatch]] = {}

    @torch.no_grad()
    def losses(self, model: nn.Module, progress: float = 1.0, names: Sequence[str] | None = None) -> dict[str, float]:
        """{name: mean loss in nats per predicted token} of a `MaskedLanguageModel`, on all processes alike.

        Args:
            progress: share of the run that is done, for a rate that changes.
            names: which of `maskers`; default all.
        """
        training = model.training
        model.eval()
        try:
            device = next(model.parameters()).device
            return {name: self._mean_loss(model, name, progress, device) for name in names or self.maskers}
        finally:
            model.train(training)

    def _mean_loss(self, model: nn.Module, name: str, progress: float, device: torch.device) -> float:
        batches = self._batches(name, progress)
        rank, world = _rank_and_world()
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        # Every process takes as many batches as any: under ZeRO-3 a forward pass is a joint act.
        for turn in range(-(-len(batches) // world)):
            place = turn * world + rank
            counts = float(place < len(batches))
            batch = batches[min(place, len(batches) - 1)]
            positions, targets = predicted(batch.labels)
            loss = model(**model_inputs(batch, positions, targets, device))
            sums += counts * torch.stack([loss.double(), torch.tensor(len(targets), device=device)])
        if world > 1:
            torch.distributed.all_reduce(sums)
        return float(sums[0] / sums[1].clamp(min=1))

    def _batches(self, name: str, progress: float) -> list[MaskedBatch]:
        """The masked batches, kept; those of a rate that changes are made anew."""
        masker = self.maskers[name]
        if name in self._masked:
            return self._masked[name]
        made = []
        for start in range(0, len(self.index), self.rows):
            index = self.index[start : start + self.rows]
            ids = pad([self.blocks[place]["input_ids"] for place in index.tolist()], self.blocks.pad_id)
            made.append(masker(torch.from_numpy(ids), torch.from_numpy(index), 0, progress))
        masker.reset_counts()
        rates = masker.rates
        if rates.corruption.constant and rates.prediction.constant:
            self._masked[name] = made
        return made

    def unigram_loss(self, streams: Sequence[BlockDataset]) -> float:
        """Nats per token of the blocks (not of `<s>`) under the training text's token frequencies, with one added."""
        counts = np.ones(self.blocks.vocab_size)
        for stream in streams:
            tokens = np.asarray(stream.tokens[: COUNTED // len(streams)])
            counts += np.bincount(tokens, minlength=len(counts))
        log_p = np.log(counts / counts.sum())
        bodies = np.concatenate([self.blocks[place]["input_ids"][1:] for place in self.index.tolist()])
        return float(-log_p[bodies].mean())


def model_inputs(batch: MaskedBatch, positions: Tensor, targets: Tensor, device: torch.device) -> dict[str, Any]:
    """The arguments of `MaskedLanguageModel` on a device; without a mask where nothing is padding."""
    padded = not bool(batch.attention_mask.all())
    inputs = {"input_ids": batch.input_ids, "positions": positions, "targets": targets}
    if padded:
        inputs["attention_mask"] = batch.attention_mask
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


def named_losses(losses: dict[str, float]) -> dict[str, float]:
    """For logs and results: eval_<name> in nats, with bits and perplexity."""
    named = {}
    for name, nats in losses.items():
        bits, perplexity = bits_and_perplexity(nats)
        named |= {f"eval_{name}": nats, f"eval_{name}_bits": bits, f"eval_{name}_ppl": perplexity}
    return named


def name_of(rate: float) -> str:
    """0.15 -> "15", 0.125 -> "12.5"."""
    return f"{100 * rate:g}"


def _mask_only(vocabulary: Vocabulary, rate: float, seed: int) -> Masker:
    return build_masker({"masking": {"rate": rate, "seed": seed}}, vocabulary)


def _rank_and_world() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
