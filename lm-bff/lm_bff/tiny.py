"""`model=tiny`: a masked language model of 0.6 million parameters, trained on the spot in about a minute.

The paper's effect needs a model that has learned something about the words at the mask before the few-shot training
begins; no randomly initialised model shows it, and no download may be needed. So this one is pre-trained here: a
WordPiece tokenizer of 4,000 pieces and 2 pre-norm layers of RoBERTa with 96 units and 4 heads, the decoder tied to the
word embeddings. Some sentences are followed by answered ones, as in prompts with demonstrations, and for some sequences
positions begin anywhere: prompts are longer than sentences.

The text is plain sentences, and labelled sentences put into words: "<sentence> it was great ." Each word is masked with
a probability of 8 %, the label's word always; the loss is cross entropy at the masks, plus at the label's place cross
entropy among the words that could have stood there, weighted thrice. A quarter of the labels are wrong on purpose,
those of the first class more often: like every large model this one prefers some words to others, zero-shot accuracy is
above chance and below what its features allow, and few-shot training has something to gain. The first part of the
training has neither wrong labels nor answered sentences: with them from the start, it is a matter of luck whether so
few steps find out what the label's place is about.

Same text, same seed: same bytes, on one machine and number of threads. The folder is cached under a digest of the text
and of every setting, and holds the tokenizer that the weights belong to: another one trained on the same text, with
another version of the library, would silently break them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

from lm_bff.label_words import word_id
from lm_bff.template import parse
from lm_bff.tiny_text import Text, training_text
from shared import InputError, hub

log = logging.getLogger(__name__)

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MAX_LETTERS = 120
MAX_POSITIONS = 512
FRAME_TOKENS = 16  # room for the words around a sentence
SHORT_TOKENS, DEMONSTRATED = 24, 0.5  # answered sentences are this short and follow this part of the others
BATCHES_PER_POOL = 16
POSITION_SCALE = 0.25
SHIFTED = 0.3  # the part of sequences whose positions do not begin at 0
FORMAT = 1  # part of the cache key: raise it when the training changes


@dataclass(frozen=True)
class TinySettings:
    """Sizes of the model and of its training.

    flips: the part of verbalised labels that is wrong; by `lean` more of the first class and less of the others.
    clean: the part of the steps, at the beginning, that has neither wrong labels nor answered sentences.
    choice_weight: of the cross entropy among the label's words.
    """

    vocab_size: int = 4000
    num_hidden_layers: int = 2
    hidden_size: int = 96
    num_attention_heads: int = 4
    intermediate_size: int = 192
    steps: int = 900
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.06
    mask_rate: float = 0.08
    flips: float = 0.25
    lean: float = 0.04
    clean: float = 0.45
    choice_weight: float = 3.0
    initializer_range: float = 0.04
    max_length: int = 64
    seed: int = 42


def tiny_mlm(
    cache_dir: str | Path | None = None,
    *,
    text: Text | None = None,
    settings: TinySettings | None = None,
    progress: bool = True,
) -> Path:
    """The folder of the tiny masked language model (weights and tokenizer), trained now if it is not cached.

    Args:
        cache_dir: where such folders are kept; default `repro/lm-bff/tiny` in the Hugging Face home.
        text: what it is trained on; default `tiny_text.training_text()`.
    Raises:
        InputError: settings that do not fit together, or no text.
    """
    settings = settings or TinySettings()
    text = text or training_text()
    _check(settings, text)
    root = Path(cache_dir) if cache_dir is not None else hub.cache_folder("lm-bff") / "tiny"
    key = hashlib.sha256(json.dumps([FORMAT, text.digest, asdict(settings)], sort_keys=True).encode()).hexdigest()
    folder = root / key[:20]
    if (folder / "config.json").is_file():
        return folder
    tokenizer = train_tokenizer([*text.sentences, *text.words], settings.vocab_size, text.words)
    model = build_model(tokenizer, settings)
    report = train(model, tokenizer, text, settings, progress)
    partial = root / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    about = {"text": text.about, "settings": asdict(settings), **report}
    (partial / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    try:
        partial.rename(folder)
    except OSError:  # another process was faster; what it wrote is the same
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check(settings: TinySettings, text: Text) -> None:
    if settings.hidden_size % (2 * settings.num_attention_heads):
        raise InputError(
            f"tiny.hidden_size={settings.hidden_size}: give a multiple of 2 x num_attention_heads="
            f"{settings.num_attention_heads}"
        )
    for name in ("steps", "batch_size", "num_hidden_layers"):
        if getattr(settings, name) < 1:
            raise InputError(f"tiny.{name}={getattr(settings, name)}: give 1 or more")
    for name in ("mask_rate", "flips", "clean"):
        if not 0 <= getattr(settings, name) < 1:
            raise InputError(f"tiny.{name}={getattr(settings, name)}: give a number from 0 to 1, without 1")
    if not 0 <= settings.lean <= min(settings.flips, 1 - settings.flips):
        raise InputError(f"tiny.lean={settings.lean}: give a number from 0 to tiny.flips={settings.flips}")
    if settings.vocab_size < 500:
        raise InputError(f"tiny.vocab_size={settings.vocab_size}: give at least 500; letters alone take up to 240")
    if not text.plain and not text.verbalised:
        raise InputError("the tiny model has no text to be trained on")


# ------------------------------------------------------------------------------------------------ tokenizer and model


def train_tokenizer(texts: Iterable[str], vocab_size: int, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Train an uncased WordPiece tokenizer in which each of `words` is one token."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    texts = list(texts)
    letters = Counter(letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace())
    alphabet = sorted(sorted(letters, key=lambda letter: (-letters[letter], letter))[:MAX_LETTERS])
    whole = sorted({normalizer.normalize_str(word) for word in words} - set(alphabet))
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    # The trainer numbers letters in the order of a hash map that differs from process to process, and breaks ties
    # between equally frequent merges by these numbers. Naming all of them beforehand fixes them, and so the result.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS.values(), *alphabet, *(f"##{letter}" for letter in alphabet), *whole],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A model of its own from the vocabulary: the trainer would leave letters and words as special tokens, cut out of
    # the text before it is normalised.
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))
    trained = Tokenizer(models.WordPiece(vocab=vocab, unk_token=SPECIAL_TOKENS["unk"]))
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    trained.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))
    names = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    return PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=MAX_POSITIONS, **names)


def build_model(tokenizer: PreTrainedTokenizerFast, settings: TinySettings) -> RobertaPreLayerNormForMaskedLM:
    """The untrained model, its weights drawn with `settings.seed` and independent of what ran before."""
    config = RobertaPreLayerNormConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        max_position_embeddings=MAX_POSITIONS + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=settings.initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = RobertaPreLayerNormForMaskedLM(config)
    # Positions as loud as words would drown them for most of so short a training.
    with torch.no_grad():
        model.roberta_prelayernorm.embeddings.position_embeddings.weight.mul_(POSITION_SCALE)
        model.roberta_prelayernorm.embeddings.token_type_embeddings.weight.zero_()
    return model


# ------------------------------------------------------------------------------------------------ examples and batches


@dataclass(frozen=True)
class Encoded:
    """All training sequences as token ids.

    ids: one array per sequence, with [CLS] and [SEP]. slot: `(sequences,)` the place of the label's word, -1 where
    there is none. choices: `(sequences, most labels)` token ids that could stand there, -1 where there are fewer.
    right: `(sequences,)` which of them is the label.
    """

    ids: list[np.ndarray]
    slot: np.ndarray
    choices: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def encode_text(text: Text, tokenizer: PreTrainedTokenizerFast, settings: TinySettings) -> Encoded:
    """Token ids of plain and verbalised sentences; a long sentence loses its end, never the words around the label."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    plain = tokenizer(list(text.plain), add_special_tokens=False)["input_ids"] if text.plain else []
    ids = [np.array([cls, *row[: settings.max_length - 2], sep]) for row in plain]
    most = max((len(one.words) for one in text.verbalised), default=1)
    slot = np.full(len(ids) + len(text.verbalised), -1)
    choices = np.full((len(slot), most), -1)
    right = np.zeros(len(slot), int)
    templates = {one.template: parse(one.template) for one in text.verbalised}
    for row, one in enumerate(text.verbalised, start=len(ids)):
        limit = settings.max_length - FRAME_TOKENS
        rendered = templates[one.template].render(tokenizer, [one.sentence], first_sent_limit=limit)
        ids.append(np.array(rendered.input_ids))
        slot[row], right[row] = rendered.mask_position, one.label
        choices[row, : len(one.words)] = [word_id(tokenizer, word) for word in one.words]
    return Encoded(ids, slot, choices, right)


def demonstrated(encoded: Encoded, text: Text, settings: TinySettings) -> Encoded:
    """The same with a short answered sentence of each label, in the same template and words, after some sequences."""
    templates = [one.template for one in text.verbalised]
    first, ids = len(encoded) - len(templates), list(encoded.ids)
    rng = np.random.default_rng(settings.seed)
    short: dict[tuple, list[np.ndarray]] = {}
    for row, template in enumerate(templates, start=first):
        if len(encoded.ids[row]) <= SHORT_TOKENS:
            answered = encoded.ids[row][1:].copy()
            answered[encoded.slot[row] - 1] = encoded.choices[row, encoded.right[row]]
            short.setdefault((template, *encoded.choices[row], encoded.right[row]), []).append(answered)
    for row, template in enumerate(templates, start=first):
        if rng.random() >= DEMONSTRATED:
            continue
        way = (template, *encoded.choices[row])
        groups = [short.get((*way, label), []) for label in range((encoded.choices[row] >= 0).sum())]
        if all(groups):
            shown = [group[rng.integers(len(group))] for group in groups]
            ids[row] = np.concatenate([ids[row], *shown])
    return replace(encoded, ids=ids)


def batches(encoded: Encoded, settings: TinySettings, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless row numbers `(batch_size,)`: shuffled, then sorted by length among some batches, to pad little."""
    lengths = np.array([len(row) for row in encoded.ids])
    size, pool = settings.batch_size, settings.batch_size * BATCHES_PER_POOL
    while True:
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            parts = [rows[i : i + size] for i in range(0, len(rows), size)]
            yield from (parts[i] for i in rng.permutation(len(parts)))


@dataclass(frozen=True)
class Batch:
    """One step's tensors. `where`: `(masks,)` places in the flattened ids; `targets`: `(masks,)`; `slots`: `(labels,)`
    which of the masks are labels' words, with their `choices` `(labels, most)` and `right` `(labels,)`."""

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    where: Tensor
    targets: Tensor
    slots: Tensor
    choices: Tensor
    right: Tensor


def make_batch(
    encoded: Encoded,
    rows: np.ndarray,
    settings: TinySettings,
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
) -> Batch:
    """Pad, mask, and draw the wrong labels. Which labels are wrong is drawn anew at each visit of a sentence."""
    pad, mask = tokenizer.pad_token_id, tokenizer.mask_token_id
    special = [pad, mask, tokenizer.cls_token_id, tokenizer.sep_token_id]
    lengths = np.array([len(encoded.ids[row]) for row in rows])
    ids = np.full((len(rows), lengths.max()), pad)
    real = np.arange(ids.shape[1]) < lengths[:, None]
    ids[real] = np.concatenate([encoded.ids[row] for row in rows])
    chosen = real & ~np.isin(ids, special) & (rng.random(ids.shape) < settings.mask_rate)
    targets = ids.copy()
    labelled = np.flatnonzero(encoded.slot[rows] >= 0)
    slots, choices = encoded.slot[rows][labelled], encoded.choices[rows][labelled]
    right = encoded.right[rows][labelled]
    counts = (choices >= 0).sum(axis=1)
    wrong = (right + 1 + (rng.random(len(right)) * (counts - 1)).astype(int)) % counts
    rates = settings.flips + np.where(right == 0, settings.lean, -settings.lean / np.maximum(counts - 1, 1))
    right = np.where(rng.random(len(right)) < rates, wrong, right)
    targets[labelled, slots] = choices[np.arange(len(right)), right]
    chosen[labelled, slots] = True
    where = np.flatnonzero(chosen)
    # Prompts with demonstrations are longer than any sentence: beginning somewhere, every position is trained.
    starts = rng.integers(MAX_POSITIONS // 2, size=len(rows)) * (rng.random(len(rows)) < SHIFTED)
    positions = pad + 1 + starts[:, None] + np.arange(ids.shape[1])
    return Batch(
        torch.from_numpy(np.where(chosen, mask, ids)),
        None if real.all() else torch.from_numpy(real.astype(np.int64)),
        torch.from_numpy(positions),
        torch.from_numpy(where),
        torch.from_numpy(targets.reshape(-1)[where]),
        torch.from_numpy(np.searchsorted(where, labelled * ids.shape[1] + slots)),
        torch.from_numpy(choices),
        torch.from_numpy(right),
    )


# ------------------------------------------------------------------------------------------------------------ training


def loss_of(model: RobertaPreLayerNormForMaskedLM, batch: Batch, choice_weight: float = 1.0) -> Tensor:
    """Cross entropy at the masks over the vocabulary, plus cross entropy at the labels' places over their words."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    hidden = model.roberta_prelayernorm(**inputs).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.where])
    loss = F.cross_entropy(logits, batch.targets) if len(batch.targets) else logits.sum()
    if len(batch.slots):
        among = logits[batch.slots].gather(1, batch.choices.clamp(min=0))
        loss = loss + choice_weight * F.cross_entropy(among.masked_fill(batch.choices < 0, -torch.inf), batch.right)
    return loss


def train(
    model: RobertaPreLayerNormForMaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    text: Text,
    settings: TinySettings,
    progress: bool = True,
) -> dict[str, float]:
    """Train in place; returns the loss of the last tenth of the steps. The rate warms up, then falls to 0 linearly."""
    rng = np.random.default_rng(settings.seed)
    encoded = encode_text(text, tokenizer, settings)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    other = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True)
    warmup = max(1, round(settings.warmup * settings.steps))
    model.train()
    losses = []
    stages = ((encoded, replace(settings, flips=0.0, lean=0.0)), (demonstrated(encoded, text, settings), settings))
    streams = [batches(part, settings, rng) for part, _ in stages]
    for step in tqdm(range(settings.steps), desc="training the tiny model", unit="step", disable=not progress):
        rate = min((step + 1) / warmup, (settings.steps - step) / max(1, settings.steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * rate
        late = step >= settings.clean * settings.steps
        (part, drawing), rows = stages[late], next(streams[late])
        loss = loss_of(model, make_batch(part, rows, drawing, tokenizer, rng), settings.choice_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    model.eval()
    last = torch.stack(losses[-max(1, settings.steps // 10) :])
    if not torch.isfinite(last).all():
        raise InputError(f"the tiny model's loss is not finite; tiny.lr={settings.lr:g} is too high")
    log.info("tiny masked LM: %d sequences, %d steps, loss %.3f", len(encoded), settings.steps, last.mean())
    return {"loss": float(last.mean()), "sequences": len(encoded)}
