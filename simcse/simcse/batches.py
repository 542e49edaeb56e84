"""From text to `(batch, num_sent, L)` tensors with next to no work per step.

Text is tokenised once, in bulk, into one flat int32 file per column with its row starts (a million sentences: 100 MB,
memory-mapped, shared by all processes of a machine). A batch is then one vectorised gather, about 0.1 ms for 128 rows,
where tokenising 128 sentences on the fly takes 5 to 10 ms. Only text that augmentation changes is tokenised per batch.

The sampler hands out positions `epoch * n + index`, so that whatever is random about an example (its augmentation, its
positive) is a function of (seed, epoch, index), and a resumed run, another number of workers or of processes draws the
same.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from shared import InputError
from simcse.pairs import Positives

log = logging.getLogger(__name__)

CHUNK = 8192
FORMAT = 1


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids, special tokens included: row i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return self.offsets[rows + 1] - self.offsets[rows]

    def write_into(self, out: np.ndarray, rows: np.ndarray) -> None:
        """Write rows into the left of `out` (batch, L), which holds the padding id already."""
        place = np.arange(out.shape[1])
        kept = place < self.lengths(rows)[:, None]
        out[kept] = self.ids[(self.offsets[rows][:, None] + place)[kept]]


def tokenize(texts: Sequence[str], tokenizer, max_length: int, folder: Path) -> TokenRows:
    """Tokenise once into `<folder>/<fingerprint>`, or open what an earlier run (or another process) wrote there.

    The fingerprint covers texts, tokenizer and length. Truncated to `max_length` with special tokens; no padding.

    Raises:
        InputError: a max_length with no room for a word.
    """
    target = folder / _fingerprint(texts, tokenizer, max_length)
    if not (target / "offsets.npy").exists():
        partial = folder / f".{target.name}.{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_rows(texts, tokenizer, max_length, partial)
        try:
            partial.rename(target)
        except OSError:  # another process was faster; its bytes are the same
            shutil.rmtree(partial, ignore_errors=True)
    return TokenRows(np.load(target / "ids.npy", mmap_mode="r"), np.load(target / "offsets.npy", mmap_mode="r"))


def _write_rows(texts: Sequence[str], tokenizer, max_length: int, folder: Path) -> None:
    lengths = np.empty(len(texts), dtype=np.int64)
    with (folder / "ids.bin").open("wb") as file:
        for start in range(0, len(texts), CHUNK):
            rows = encode(tokenizer, list(texts[start : start + CHUNK]), max_length)
            lengths[start : start + len(rows)] = [len(row) for row in rows]
            np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]).tofile(file)
    flat = np.memmap(folder / "ids.bin", dtype=np.int32, mode="r")
    np.save(folder / "ids.npy", flat)
    (folder / "ids.bin").unlink()
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))


def encode(tokenizer, texts: list[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, truncated to `max_length`."""
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise InputError(f"data.max_length={max_length} leaves no room beside {special} special tokens. Use e.g. 32.")
    return tokenizer(
        texts, truncation=True, max_length=max_length, return_attention_mask=False, return_token_type_ids=False
    )["input_ids"]


def _fingerprint(texts: Sequence[str], tokenizer, max_length: int) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    digest = hashlib.sha256(f"{FORMAT}\0{max_length}\0{description}".encode())
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


class Positions(Dataset):
    """The data set Trainer sees: `count` positions; the collator turns a list of them into tensors."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> int:
        return position

    def __getitems__(self, positions: list[int]) -> list[int]:
        return positions


class EpochSampler(Sampler[int]):
    """Every position of an epoch once, in an order that is a function of (seed, epoch) alone."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """(n,) example numbers in the order of an epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)

    def __iter__(self) -> Iterator[int]:
        yield from (self.order(self.epoch) + self.epoch * self.count).tolist()


class MaskTokens:
    """Targets for the auxiliary masked-language-model loss (SimCSE, appendix D.2), drawn per batch.

    Each non-special token becomes a target with `probability`; of these 80% are replaced by the mask token, 10% by a
    uniformly drawn id and 10% kept. Works on a copy: the contrastive input must stay as it is.

    Raises:
        InputError: a probability outside (0, 1), or a tokenizer without mask token.
    """

    def __init__(self, tokenizer, probability: float = 0.15):
        if not 0 < probability < 1:
            raise InputError(f"loss.mlm_probability={probability}: give a number between 0 and 1, both excluded.")
        if tokenizer.mask_token_id is None:
            raise InputError("loss.mlm=true needs a tokenizer with a mask token; this one has none.")
        self.probability = probability
        self.mask_id = tokenizer.mask_token_id
        self.vocab_size = len(tokenizer)
        self.special = np.array(sorted(tokenizer.all_special_ids))

    def __call__(self, ids: np.ndarray, attention: np.ndarray, rng: np.random.Generator):
        """(masked ids, labels), both shaped like `ids` (rows, L); labels are -100 where there is no target."""
        draw = rng.random(ids.shape)
        target = (draw < self.probability) & (attention > 0) & ~np.isin(ids, self.special)
        labels = np.where(target, ids, -100)
        masked = ids.copy()
        fate = rng.random(ids.shape)
        masked[target & (fate < 0.8)] = self.mask_id
        random_id = target & (fate >= 0.8) & (fate < 0.9)
        masked[random_id] = rng.integers(0, self.vocab_size, int(random_id.sum()))
        return masked, labels


@dataclass
class Collator:
    """Positions of one batch -> `input_ids`, `attention_mask` (batch, num_sent, L), example-major.

    Columns: one (unsupervised: `positives` says which sentence is whose positive) or several (sentence s of an example
    is row i of column s). `augment(texts, epoch, index) -> texts` with its `sides` changes the positive, or anchor and
    positive, before tokenisation. `mask` adds `mlm_input_ids` and `mlm_labels`.
    """

    columns: tuple[TokenRows, ...]
    tokenizer: object
    count: int
    seed: int
    max_length: int = 32
    positives: Positives | None = None
    augment: Callable | None = None
    texts: tuple[Sequence[str], ...] = ()
    mask: MaskTokens | None = None
    pad_to_max_length: bool = False

    def __post_init__(self):
        self.pad_id = self.tokenizer.pad_token_id
        if self.pad_id is None:
            raise InputError("this tokenizer has no padding token; set one, e.g. pad_token = eos_token.")
        self.with_types = "token_type_ids" in self.tokenizer.model_input_names

    def __call__(self, positions: list[int]) -> dict[str, torch.Tensor]:
        epoch, index = np.divmod(np.asarray(positions, dtype=np.int64), self.count)
        views = self.views(epoch, index)
        shape = (len(index), len(views))
        lengths = np.stack([rows.lengths(numbers) for rows, numbers in views], axis=1)
        width = self.max_length if self.pad_to_max_length else int(lengths.max())
        ids = np.full((*shape, width), self.pad_id, dtype=np.int64)
        for s, (rows, numbers) in enumerate(views):
            rows.write_into(ids[:, s], numbers)
        attention = (np.arange(width) < lengths[..., None]).astype(np.int64)
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(attention)}
        if self.with_types:
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        if self.mask is not None:
            # The same batch is masked alike in every run: its first position occurs once in a training.
            rng = np.random.default_rng([self.seed, 1, int(positions[0])])
            masked, labels = self.mask(ids, attention, rng)
            batch["mlm_input_ids"], batch["mlm_labels"] = torch.from_numpy(masked), torch.from_numpy(labels)
        return batch

    def views(self, epoch: np.ndarray, index: np.ndarray) -> list[tuple[TokenRows, np.ndarray]]:
        """For each sentence slot: the rows it is taken from and the row number of every example."""
        if len(self.columns) == 1:
            anchor, positive = self.positives.pick(epoch, index) if self.positives else (index, index)
            views = [(self.columns[0], anchor), (self.columns[0], positive)]
            texts = [self.texts[0], self.texts[0]] if self.augment else []
        else:
            views = [(rows, index) for rows in self.columns]
            texts = list(self.texts)
        if self.augment is not None:
            for slot in self.augment.slots:
                changed = self.augment([texts[slot][i] for i in views[slot][1]], epoch, index, slot)
                views[slot] = self._tokenized(changed)
        return views

    def _tokenized(self, texts: list[str]) -> tuple[TokenRows, np.ndarray]:
        rows = encode(self.tokenizer, texts, self.max_length)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        return TokenRows(np.concatenate([np.asarray(row, np.int32) for row in rows]), offsets), np.arange(len(rows))
