"""Beam search for one text that suits many inputs at once (section 5.1 of the paper): T5 fills in a template.

All training examples share the hypotheses. A hypothesis is scored by the mean over the examples of the decoder's
logits, log-normalised once after averaging (the release's rule; the paper sums log-probabilities, which ranks the
continuations of one hypothesis alike), and its score is the plain sum over its tokens: no length penalty.

The release runs encoder and whole prefix anew for each hypothesis and step. Here

- the encoder, and the keys and values of cross-attention, are computed once, and are not repeated per hypothesis: the
  hypotheses of an example are the queries of one attention over its input;
- self-attention keeps keys and values, and reorders them when hypotheses are chosen;
- as the output layer is linear, hidden states are averaged over the examples before it, not logits after it: one row
  per hypothesis meets the vocabulary instead of one per hypothesis and example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from shared import InputError

# A lone space and rows of dots, which T5 likes to fill blanks with; two full stops in a row are forbidden too.
FORBIDDEN = ("▁", "....", "..........")
FULL_STOP = "."


@dataclass(frozen=True)
class Hypothesis:
    """Generated token ids, the sum of their log-probabilities, and whether all blanks are filled."""

    tokens: tuple[int, ...]
    score: float
    finished: bool


@dataclass(frozen=True)
class Blanks:
    """How many blanks there are, and which tokens end, forbid or separate them.

    A counter starts at 1 and rises with the sentinel of its own number or an end of sequence; a hypothesis is finished
    when it exceeds `count`.
    """

    count: int
    sentinels: tuple[int, ...]
    end: int
    forbidden: tuple[int, ...]
    full_stop: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, count: int = 2) -> Blanks:
        """The token ids of a T5 tokenizer; raises InputError for one without sentinels.

        Beside the release's, tokens with an asterisk or an underscore are forbidden, which mean something in a
        template, and with them the sentinels of blanks that do not exist.
        """
        vocabulary = tokenizer.get_vocab()
        names = [f"<extra_id_{number}>" for number in range(count + 1)]
        if missing := [name for name in names if name not in vocabulary]:
            raise InputError(f"the tokenizer has no {missing[0]}: templates are written by T5")
        marks = [number for token, number in vocabulary.items() if "*" in token or "_" in token]
        unwanted = [vocabulary[token] for token in FORBIDDEN if token in vocabulary]
        special = [vocabulary[t] for t in (tokenizer.pad_token, tokenizer.unk_token) if t in vocabulary]
        keep = {vocabulary[name] for name in names}
        forbidden = sorted({*marks, *unwanted, *special} - keep - {tokenizer.eos_token_id})
        stop = vocabulary.get(FULL_STOP)
        return cls(count, tuple(vocabulary[name] for name in names), tokenizer.eos_token_id, tuple(forbidden), stop)

    def advance(self, counter: int, token: int) -> int:
        """The counter after a token."""
        return counter + (token == self.end or token == self.sentinels[min(counter, len(self.sentinels) - 1)])


class SharedDecoder:
    """T5's decoder over n inputs and a changing set of hypotheses, one token at a time.

    Args:
        input_ids, attention_mask: (n, longest).
    """

    @torch.inference_mode()
    def __init__(self, model: T5ForConditionalGeneration, input_ids: Tensor, attention_mask: Tensor):
        self.model, self.config = model, model.config
        encoded = model.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        self.hidden_mask = attention_mask[:, None, None, :].bool()
        self.cross = []
        for block in model.decoder.block:
            attention = block.layer[1].EncDecAttention
            self.cross.append((self._heads(attention.k(encoded)), self._heads(attention.v(encoded))))
        self.past: list[tuple[Tensor, Tensor]] = []
        self.length = 0

    def _heads(self, x: Tensor) -> Tensor:
        """(..., seq, heads * d_kv) -> (..., heads, seq, d_kv)"""
        return x.unflatten(-1, (self.config.num_heads, self.config.d_kv)).transpose(-2, -3)

    @torch.inference_mode()
    def step(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        """Log-probabilities `(hypotheses, vocabulary)` of the next token.

        Args:
            tokens: (hypotheses,) the last token of each.
            parents: (hypotheses,) which of the previous call's hypotheses each one continues; None at the first call.
        """
        examples = len(self.hidden_mask)
        x = self.model.shared(tokens)[None].expand(examples, -1, -1)  # (n, hypotheses, width)
        first = self.model.decoder.block[0].layer[0].SelfAttention
        bias = first.compute_bias(1, self.length + 1, device=x.device, past_seen_tokens=self.length)  # (1, H, 1, t)
        for number, block in enumerate(self.model.decoder.block):
            x = x + self._self_attention(block.layer[0], x, number, parents, bias)
            x = x + self._cross_attention(block.layer[1], x, number)
            x = block.layer[2](x)
        self.length += 1
        mean = self.model.decoder.final_layer_norm(x).float().mean(dim=0)
        if self.config.scale_decoder_outputs:
            mean = mean * self.config.d_model**-0.5
        return F.log_softmax(F.linear(mean, self.model.lm_head.weight.float()), dim=-1)

    def _self_attention(self, layer: nn.Module, x: Tensor, number: int, parents: Tensor | None, bias: Tensor) -> Tensor:
        attention, normed = layer.SelfAttention, layer.layer_norm(x)
        split = (self.config.num_heads, 1, self.config.d_kv)
        query, key, value = (part(normed).unflatten(-1, split) for part in (attention.q, attention.k, attention.v))
        if parents is not None:
            old_key, old_value = self.past[number]
            key = torch.cat([old_key.index_select(1, parents), key], dim=-2)
            value = torch.cat([old_value.index_select(1, parents), value], dim=-2)
        if number < len(self.past):
            self.past[number] = (key, value)
        else:
            self.past.append((key, value))
        scores = query @ key.transpose(-1, -2) + bias  # (n, hypotheses, H, 1, t)
        mixed = scores.float().softmax(dim=-1).to(value.dtype) @ value
        return attention.o(mixed.flatten(-3))

    def _cross_attention(self, layer: nn.Module, x: Tensor, number: int) -> Tensor:
        attention = layer.EncDecAttention
        key, value = self.cross[number]
        query = self._heads(attention.q(layer.layer_norm(x)))  # (n, H, hypotheses, d_kv)
        scores = (query @ key.transpose(-1, -2)).float().masked_fill(~self.hidden_mask, -torch.inf)
        mixed = scores.softmax(dim=-1).to(value.dtype) @ value
        return attention.o(mixed.transpose(-2, -3).flatten(-2))


Step = Callable[[Tensor, Tensor | None], Tensor]


def beam_search(step: Step, start: int, blanks: Blanks, beam: int = 100, max_tokens: int = 18) -> list[Hypothesis]:
    """The best hypotheses, highest score first; unfinished ones are among them, marked.

    Finished hypotheses stay in the beam with their score and are not continued.

    Args:
        step: (last tokens (h,), parents (h,) or None) -> log-probabilities (h, vocabulary), as `SharedDecoder.step`.
        start: the decoder's start token.
    """
    if beam < 1 or max_tokens < 1:
        raise InputError(f"beam={beam}, max_tokens={max_tokens}: give 1 or more")
    done: list[Hypothesis] = []
    alive = [Hypothesis((), 0.0, False)]
    counters, tokens, parents = [1], torch.tensor([start]), None
    for _ in range(max_tokens):
        log_probs = step(tokens, parents).double().cpu()
        log_probs[:, list(blanks.forbidden)] = -torch.inf
        if blanks.full_stop is not None:
            stopped = [row for row, one in enumerate(alive) if one.tokens and one.tokens[-1] == blanks.full_stop]
            log_probs[stopped, blanks.full_stop] = -torch.inf
        scores = torch.tensor([one.score for one in alive], dtype=torch.float64)
        total, places = _top(scores[:, None] + log_probs, beam)
        # Those finished before come first: among equals the earlier stays.
        entries = [(one, -1, blanks.count + 1) for one in done]
        for score, place in zip(total.tolist(), places.tolist(), strict=True):
            row, token = divmod(place, log_probs.shape[1])
            counter = blanks.advance(counters[row], token)
            entries.append((Hypothesis((*alive[row].tokens, token), score, counter > blanks.count), row, counter))
        entries = sorted(entries, key=lambda entry: -entry[0].score)[:beam]
        done = [one for one, _, _ in entries if one.finished]
        entries = [entry for entry in entries if not entry[0].finished]
        alive, counters = [one for one, _, _ in entries], [counter for _, _, counter in entries]
        if not alive:
            break
        tokens = torch.tensor([one.tokens[-1] for one in alive])
        parents = torch.tensor([row for _, row, _ in entries])
    return sorted([*done, *alive], key=lambda one: -one.score)


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest `count` finite values of a matrix and their flat positions; equal values in order of position."""
    flat = scores.reshape(-1)
    values, places = flat.topk(min(count, len(flat)))
    order = sorted(range(len(values)), key=lambda i: (-values[i].item(), places[i].item()))
    order = [i for i in order if values[i] > -torch.inf]
    return values[order], places[order]


def search_texts(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[Sequence[int]],
    beam: int = 100,
    max_tokens: int = 18,
) -> list[Hypothesis]:
    """Beam search over the texts between the sentinels of `inputs` (token ids, unpadded), shared by all of them."""
    if not inputs:
        raise InputError("template search: there is no training example")
    device = model.device
    rows = nn.utils.rnn.pad_sequence([torch.tensor(list(row)) for row in inputs], True, tokenizer.pad_token_id)
    lengths = torch.tensor([len(row) for row in inputs])
    mask = (torch.arange(rows.shape[1]) < lengths[:, None]).long()
    decoder = SharedDecoder(model.eval(), rows.to(device), mask.to(device))

    def step(tokens: Tensor, parents: Tensor | None) -> Tensor:
        return decoder.step(tokens.to(device), None if parents is None else parents.to(device))

    return beam_search(step, model.config.decoder_start_token_id, Blanks.of(tokenizer), beam, max_tokens)
