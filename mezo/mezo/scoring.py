"""Log-probabilities of options under a causal language model, with no position computed twice or for nothing.

A candidate's score needs the logits in front of its option tokens, and those only. So:

    the longest common beginning of an example's candidates runs once, and each candidate's rest as a branch behind it
    the last token of a branch predicts nothing that is asked for and is left out
    the output layer sees the rows that predict option tokens, not every position

Candidates of one token each have nothing left of their branches: the prompt runs once, which is the whole cost. With
longer ones a branch sees the common beginning and itself (a mask over positions), and its positions go on from there.

Rows are padded on the right, where causal attention never looks, so that positions are the tokens' own; or examples
lie behind each other in one row (`layout="packed"`), each seeing itself only: no padding at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor, nn

from mezo.encoding import Encoded, Ids
from shared import InputError

LAYOUTS = ("auto", "rows", "packed")
# A packed row costs attention over all its pairs: worth it where the padding saved is more than a tenth.
WASTE_WORTH_PACKING = 0.1


@dataclass
class Sequences:
    """Examples laid out as the inputs of one forward pass.

    input_ids, position_ids: (rows, length). mask: (rows, 1, length, length) bool, True where a position may look, or
    None where each row is one sequence (plain causal attention).
    where: (n,) the flat positions (row * length + column) whose next token is asked for; targets: (n,) these tokens.
    owner: (n,) number of the candidate each belongs to, counted over all examples; counts: candidates per example;
    gold: their right candidates; longest: positions that are needed.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor | None
    where: Tensor
    targets: Tensor
    owner: Tensor
    counts: list[int]
    gold: list[tuple[int, ...]]
    longest: int

    @property
    def tokens(self) -> int:
        """Positions of the forward pass, padding included."""
        return self.input_ids.numel()


# ---------------------------------------------------------------------------------------------------- laying out


@dataclass
class _Pieces:
    """One example as a common beginning and branches."""

    start: Ids
    branches: list[Ids]
    asked: list[tuple[int, int, int]]  # (candidate, position within beginning + own branch, next token)

    @property
    def length(self) -> int:
        return len(self.start) + sum(map(len, self.branches))


def _pieces(example: Encoded, whole: bool) -> _Pieces:
    """`whole`: the loss is over the whole sequence, not only the option."""
    inputs = [ids[:-1] for ids in example.candidates]
    shared = len(list(takewhile(lambda same: len(set(same)) == 1, zip(*inputs, strict=False))))
    asked = []
    for number, (ids, option) in enumerate(zip(example.candidates, example.option_lens, strict=True)):
        first = 1 if whole else len(ids) - option
        asked += [(number, at - 1, ids[at]) for at in range(first, len(ids))]
    return _Pieces(inputs[0][:shared], [ids[shared:] for ids in inputs], asked)


def lay_out(
    examples: Sequence[Encoded],
    *,
    share: bool = True,
    layout: str = "auto",
    whole: bool = False,
    pad: int = 0,
    device: torch.device | str = "cpu",
) -> Sequences:
    """Put examples into one forward pass.

    Args:
        share: run an example's common beginning once; else every candidate is a row of its own.
        layout: "rows" (one example each, padded), "packed" (one row), or what has fewer positions ("auto").
        whole: ask for every token of the sequences, not only those of the options.
    """
    if not examples:
        raise InputError("no example to lay out: the batch is empty")
    counts = [len(example.candidates) for example in examples]
    gold = [example.gold for example in examples]
    parts = [e.only(c) for e in examples for c in range(len(e.candidates))] if not share else list(examples)
    pieces = [_pieces(part, whole) for part in parts]
    lengths = [piece.length for piece in pieces]
    padded = len(lengths) * max(lengths)
    packed = layout == "packed" or (
        layout == "auto" and share and padded > sum(lengths) * (1 + WASTE_WORTH_PACKING) and sum(lengths) <= 4096
    )
    width = sum(lengths) if packed else max(lengths)
    rows = 1 if packed else len(pieces)
    ids, position = np.full((rows, width), pad, np.int64), np.zeros((rows, width), np.int64)
    of, branch = np.full((rows, width), -1, np.int64), np.zeros((rows, width), np.int64)
    where, targets, owner, at, candidates = [], [], [], 0, 0
    for number, piece in enumerate(pieces):
        row, begin = (0, at) if packed else (number, 0)
        starts, cursor = [], begin
        for segment, tokens in enumerate((piece.start, *piece.branches)):
            stop = cursor + len(tokens)
            ids[row, cursor:stop], of[row, cursor:stop], branch[row, cursor:stop] = tokens, number, segment
            offset = 0 if segment == 0 else len(piece.start)
            position[row, cursor:stop] = np.arange(offset, offset + len(tokens))
            starts.append(cursor)
            cursor = stop
        for candidate, within, target in piece.asked:
            inside = within < len(piece.start)
            column = begin + within if inside else starts[candidate + 1] + within - len(piece.start)
            where.append(row * width + column)
            targets.append(target)
            owner.append(candidates + candidate)
        at, candidates = cursor, candidates + len(piece.branches)
    plain = not packed and all(not any(piece.branches) or len(piece.branches) == 1 for piece in pieces)
    mask = None if plain else _mask(of, branch)
    tensors = [torch.from_numpy(a).to(device, non_blocking=True) for a in (ids, position)]
    lists = [torch.tensor(a, device=device) for a in (where, targets, owner)]
    mask = None if mask is None else mask.to(device)
    return Sequences(*tensors, mask, *lists, counts, gold, longest=int(position.max()) + 1)


def _mask(of: np.ndarray, branch: np.ndarray) -> Tensor:
    """(rows, 1, length, length): a position sees its own example's beginning and branch, up to itself.

    Padding sees itself, so that no row of the attention is empty.
    """
    of, branch = torch.from_numpy(of), torch.from_numpy(branch)
    same = of[:, :, None] == of[:, None, :]
    reachable = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (same & reachable).tril()[:, None]


# ------------------------------------------------------------------------------------------------------- the model


def refuse_unsupported(model: nn.Module) -> None:
    """InputError for models that cannot be scored here."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", "") or type(model).__name__
    if getattr(config, "model_type", "") == "opt" and (
        config.word_embed_proj_dim != config.hidden_size or not config.do_layer_norm_before
    ):
        raise InputError(
            f"model={name}: opt-350m normalises behind its layers and projects its embeddings, unlike every other OPT; "
            "the paper leaves it out. Use opt-125m or opt-1.3b"
        )
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if getattr(config, "is_encoder_decoder", False) or not isinstance(output, nn.Module):
        raise InputError(f"model={name} is no causal language model with an output layer")


def can_share(model: nn.Module, length: int) -> bool:
    """Whether the model takes positions and a mask of our own (so that beginnings can be shared)."""
    config = model.config
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    if getattr(config, "_attn_implementation", "eager") not in ("eager", "sdpa", "mezo_prefix"):
        return False
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return window is None or length <= window


@contextmanager
def rows_only(model: nn.Module, where: Tensor, kept: list[Tensor] | None = None):
    """Inside, the output layer is given the hidden states at the flat positions `where` only: logits are (1, n, vocab).

    kept: receives these hidden states, (n, hidden).
    """

    def narrow(module: nn.Module, arguments: tuple) -> tuple:
        hidden = arguments[0].flatten(0, 1).index_select(0, where)
        if kept is not None:
            kept.append(hidden)
        return (hidden[None], *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def asked_logits(model: nn.Module, laid: Sequences, kept: list[Tensor] | None = None) -> Tensor:
    """(n, vocabulary): the logits in front of every token that is asked for, in the model's type."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and laid.longest > positions:
        raise InputError(f"a sequence has {laid.longest} tokens, the model {positions} positions; lower max_length")
    arguments = {"input_ids": laid.input_ids, "use_cache": False}
    if laid.mask is not None:
        mask = laid.mask
        if model.config._attn_implementation == "eager":  # which adds its mask
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
        arguments |= {"attention_mask": mask, "position_ids": laid.position_ids}
    with rows_only(model, laid.where, kept):
        return model(**arguments).logits[0]


def token_logprobs(logits: Tensor, targets: Tensor, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """(n,) log p of each target. dtype: None for the logits' own (half precision, as the release computes)."""
    logits = logits if dtype is None else logits.to(dtype)
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def candidate_scores(model: nn.Module, laid: Sequences, *, mean: bool = True, dtype=torch.float32) -> list[Tensor]:
    """For each example the score of each candidate, (candidates,): mean (or sum) of log p of its option tokens."""
    logprobs = token_logprobs(asked_logits(model, laid), laid.targets, dtype)
    total = sum(laid.counts)
    sums = torch.zeros(total, dtype=logprobs.dtype, device=logprobs.device).index_add(0, laid.owner, logprobs)
    if mean:
        sums = sums / torch.bincount(laid.owner, minlength=total)
    return list(sums.split(laid.counts))


def hidden_at_options(model: nn.Module, examples: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """((n, hidden), (n,)): what the output layer is given in front of each option token of the right candidates, and
    these tokens: the features and targets of linear probing."""
    right = [example.only(example.gold[0]) for example in examples]
    kept: list[Tensor] = []
    with torch.no_grad():
        laid = lay_out(right, layout="rows", device=next(model.parameters()).device)
        asked_logits(model, laid, kept)
    return kept[0], laid.targets
