"""Prefix tuning: m key and value vectors in front of every layer's own, everything else fixed (MeZO, section 3; m = 5).

The vectors stand in attention as past keys and values would: every token sees them, the tokens' positions are those of
the text alone. They enter inside the attention call of transformers' attention interface and not through a cache, so a
cache holds real tokens only and serves decoding and shared prompts as without a prefix; encoders, which have no cache,
are no special case.

Initialisation from real activations (Table 17: worth up to 7 points): keys and values of m random tokens of the
vocabulary, run through the model as they are. Otherwise N(0, 1).

`positions=authors`: in the release's generation, from the second generated token on, the mask that positions are
counted from is m ones longer, so that positions jump by m; inside `generating` the same happens here. `consistent`
keeps to the positions that training used.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shared import InputError

ATTENTION = "mezo_prefix"
POSITIONS = ("authors", "consistent")
INITS = ("real", "random")


class PrefixVectors(nn.Module):
    """`key` and `value` of one layer, (m, kv heads x head size) each; `inner`: the attention they are put before."""

    def __init__(self, length: int, heads: int, head_size: int, inner: str, like: Tensor) -> None:
        super().__init__()
        self.length, self.heads, self.head_size, self.inner = length, heads, head_size, inner
        options = {"device": like.device, "dtype": like.dtype}
        self.key = nn.Parameter(torch.empty(length, heads * head_size, **options))
        self.value = nn.Parameter(torch.empty(length, heads * head_size, **options))
        self.recording: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, kv heads, seq, head size) each -> the same with the prefix in front, seq + m long."""
        mine = (
            t.view(self.length, self.heads, self.head_size).transpose(0, 1).expand(len(key), -1, -1, -1)
            for t in (self.key, self.value)
        )
        return tuple(torch.cat((front, rest), dim=2) for front, rest in zip(mine, (key, value), strict=True))


def prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: object
) -> tuple[Tensor, Tensor | None]:
    """The attention the module had before, over keys and values with the prefix in front, which every query sees."""
    prefix: PrefixVectors = module.prefix
    inner = ALL_ATTENTION_FUNCTIONS.get_interface(
        prefix.inner, getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    )
    if prefix.recording is not None:
        prefix.recording.append((key, value))
        return inner(module, query, key, value, attention_mask, **options)
    queries, keys = query.shape[2], key.shape[2]
    flash = "flash" in prefix.inner
    if attention_mask is None and queries > 1 and getattr(module, "is_causal", True) and not flash:
        # No mask meant causal; with the prefix in front that has to be said.
        attention_mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    if attention_mask is not None:
        attention_mask = _seen(attention_mask, prefix.length, keys)
    key, value = prefix(key, value)
    return inner(module, query, key, value, attention_mask, **options)


def _seen(mask: Tensor, length: int, keys: int) -> Tensor:
    """`length` visible columns in front of a mask (batch, seq) or (batch, heads, queries, keys), of ones or added."""
    mask = mask[..., :keys]
    visible = 0.0 if mask.is_floating_point() and mask.dim() == 4 else 1
    return torch.cat((torch.full((*mask.shape[:-1], length), visible, dtype=mask.dtype, device=mask.device), mask), -1)


AttentionInterface.register(ATTENTION, prefix_attention)


def add_prefix(
    attentions: Sequence[nn.Module], key_name: str, length: int, init: str, *, run=None, vocabulary: int = 0,
    tokens: Sequence[int] | None = None, seed: int = 0,
) -> None:  # fmt: skip
    """Give every attention its prefix, in place.

    Args:
        key_name: name of the key projection, whose width is that of the prefix.
        init: "real" or "random". run: a function of ids (1, m) that runs the model (real). vocabulary: ids are drawn
            below it. tokens: use these ids instead of random ones.
    """
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise InputError(f"mode.num_prefix={length}: give a whole number, 1 or more")
    if init not in INITS:
        raise InputError(f"mode.prefix_init={init}: give real or random")
    for attention in attentions:
        if hasattr(attention, "prefix"):
            raise InputError("mode=prefix: the model has a prefix already; load the base model")
        projection = getattr(attention, key_name)
        head_size = getattr(attention, "head_dim", None) or attention.attention_head_size
        heads = projection.out_features // head_size
        inner = attention.config._attn_implementation
        attention.prefix = PrefixVectors(length, heads, head_size, inner, projection.weight)
        # A copy: the model's own config goes on deciding which masks are made.
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation_internal = ATTENTION
    prefixes = [attention.prefix for attention in attentions]
    generator = torch.Generator().manual_seed(seed)
    if prefixes[0].key.is_meta:
        return
    if init == "random":
        with torch.no_grad():
            for prefix in prefixes:
                for tensor in (prefix.key, prefix.value):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
        return
    if tokens is None:
        tokens = torch.randint(vocabulary, (length,), generator=generator).tolist()
    _from_activations(prefixes, tokens, run, vocabulary)


@torch.no_grad()
def _from_activations(prefixes: Sequence[PrefixVectors], tokens: Sequence[int], run, vocabulary: int) -> None:
    length = prefixes[0].length
    if len(tokens) != length:
        raise InputError(f"mode.prefix_tokens has {len(tokens)} ids for num_prefix={length}")
    if bad := [token for token in tokens if not 0 <= token < vocabulary]:
        raise InputError(f"mode.prefix_tokens: id {bad[0]} is not in the model's vocabulary of {vocabulary}")
    for prefix in prefixes:
        prefix.recording = []
    try:
        run(torch.tensor([list(tokens)], device=prefixes[0].key.device))
        for prefix in prefixes:
            if len(prefix.recording) != 1:
                raise InputError(
                    f"mode=prefix: a layer's attention ran {len(prefix.recording)} times in one forward pass; this "
                    "architecture is not supported"
                )
            for tensor, found in zip((prefix.key, prefix.value), prefix.recording[0], strict=True):
                tensor.copy_(found[0].transpose(0, 1).reshape(length, -1))
    finally:
        for prefix in prefixes:
            prefix.recording = None


@contextmanager
def generating(model: nn.Module) -> Iterator[None]:
    """Wrap generation in this. Where the model's prefix has positions=authors, positions jump by m after the prompt."""
    shift = getattr(model, "prefix_shift", 0)
    if not shift:
        yield
        return

    def jump(module: nn.Module, arguments: tuple, options: dict):
        past = options.get("past_key_values")
        seen = past.get_seq_length() if past is not None else 0
        if not seen:
            return None
        positions = options.get("position_ids")
        ids = options.get("input_ids", arguments[0] if arguments else None)
        mask = options.get("attention_mask")
        if positions is None and mask is not None:
            positions = (mask.cumsum(1) - 1)[:, seen:]
        elif positions is None:
            positions = torch.arange(seen, seen + ids.shape[1], device=ids.device).expand(len(ids), -1)
        last = module.config.max_position_embeddings - 1
        return arguments, {**options, "position_ids": (positions + shift).clamp(max=last)}

    handle = model.register_forward_pre_hook(jump, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
