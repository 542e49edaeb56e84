"""RoBERTa for masked language modelling: transformers' own classes, the paper's initialisation, a head that is sparing.

    config = model_config(cfg.model, norm="pre", vocab_size=50265)
    model = MaskedLanguageModel(build_backbone(config, seed=1))
    loss = model(input_ids, positions=positions, targets=targets)          # summed over the predicted positions

Pre-LayerNorm (`roberta-prelayernorm`) keeps the LayerNorm of the embeddings and has one more at the end; post-LayerNorm
is RoBERTa as published. Both count positions from 2 on (pad is 1), tie the decoder to the embedding and carry a row of
token type embeddings that the release does not have: it is zero and stays so, which makes it the same model, and it is
not counted.

Two things make a step cheaper and leave its result as it is. The head sees only predicted positions. And so does the
last layer but for its keys and values: of what it would compute at other positions nothing is ever read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)
from transformers.masking_utils import create_bidirectional_mask

from mlm_masking.loss import linear_cross_entropy
from shared import InputError
from shared.quiet import quiet_transformers

CLASSES = {
    "pre": (RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM),
    "post": (RobertaConfig, RobertaForMaskedLM),
}
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
POSITIONS = ("normal", "sinusoidal")
SLOWEST = 64.0  # the slowest sine turns once in 402 positions
PAD_ID = 1
# The row of pad comes first among the positions, and the row before it is never used.
POSITION_OFFSET = PAD_ID + 1


def model_config(options: Mapping[str, Any], norm: str, vocab_size: int) -> PretrainedConfig:
    """transformers' configuration of a size.

    Args:
        options: the `model` group: SIZES, `initializer_range`, `dropout`, `attention_dropout`, `pad_vocab_to`.
        norm: "pre" or "post". vocab_size: ids of the tokenizer; the embedding may have more rows, see `pad_vocab_to`.
    Raises:
        InputError: an unknown `norm`, or sizes that do not fit together.
    """
    if norm not in CLASSES:
        raise InputError(f"norm={norm}: give pre or post (where the LayerNorms stand)")
    for name in SIZES:
        if not isinstance(options[name], int) or options[name] < 1:
            raise InputError(f"model.{name}={options[name]}: give a whole number, 1 or more")
    if options["hidden_size"] % options["num_attention_heads"]:
        raise InputError(
            f"model.hidden_size={options['hidden_size']} does not divide among "
            f"model.num_attention_heads={options['num_attention_heads']}"
        )
    multiple = options.get("pad_vocab_to") or 1
    return CLASSES[norm][0](
        vocab_size=-(-vocab_size // multiple) * multiple,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
        hidden_dropout_prob=options.get("dropout", 0.1),
        attention_probs_dropout_prob=options.get("attention_dropout", 0.1),
        initializer_range=options.get("initializer_range", 0.02),
        pad_token_id=PAD_ID,
        bos_token_id=0,
        eos_token_id=2,
        **{name: options[name] for name in SIZES},
    )


def build_backbone(
    config: PretrainedConfig, seed: int, vocab_size: int | None = None, positions: str = "normal"
) -> PreTrainedModel:
    """A new masked-LM model: matrices N(0, initializer_range), biases and pad rows 0, LayerNorms 1 and 0.

    Args:
        seed: of the weights, the same on every machine whatever else draws random numbers.
        vocab_size: ids that exist; the rows of the embedding after them are 0.
        positions: how the position embeddings begin: "normal" as the rest, or "sinusoidal", sines of the same size,
            from which a small model learns sooner who stands beside whom. They are learned either way.
    Raises:
        InputError: another `positions`.
    """
    if positions not in POSITIONS:
        raise InputError(f"model.position_init={positions}: give one of {', '.join(POSITIONS)}")
    model = CLASSES["pre" if config.model_type == "roberta-prelayernorm" else "post"][1](config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module is not model.lm_head.decoder:
                words = module is model.get_input_embeddings()
                rows = module.weight[:vocab_size] if words else module.weight
                rows.normal_(0.0, config.initializer_range, generator=generator)
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
        if vocab_size is not None:
            model.get_input_embeddings().weight[vocab_size:].zero_()
        embeddings = model.base_model.embeddings
        embeddings.token_type_embeddings.weight.zero_()
        if positions == "sinusoidal":
            table = embeddings.position_embeddings.weight
            table[POSITION_OFFSET:] = config.initializer_range * sinusoids(len(table) - POSITION_OFFSET, table.shape[1])
    model.tie_weights()
    return model


def sinusoids(length: int, width: int) -> Tensor:
    """`(length, width)` sines and cosines in turn, of angles per position from 1 down to 1 / SLOWEST."""
    angles = torch.arange(length)[:, None] * SLOWEST ** -torch.linspace(0, 1, -(-width // 2))[None]
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


class PredictionHead(nn.Module):
    """The LM head's loss at given positions: dense, GELU, LayerNorm, tied decoder with a bias of its own.

    The decoder's weight and bias are parameters of this module too (the same tensors), so that what shards parameters
    by module (ZeRO-3) has them whole when it is called.
    """

    def __init__(self, backbone: PreTrainedModel, classes: int | None = None):
        super().__init__()
        head = backbone.lm_head
        self.dense, self.layer_norm = head.dense, head.layer_norm
        self.weight, self.bias = head.decoder.weight, head.decoder.bias
        self.classes = classes

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """`(positions, width)`, `(positions,)` -> the negative log-likelihood in nats, summed."""
        features = self.layer_norm(nn.functional.gelu(self.dense(hidden)))
        return linear_cross_entropy(features, self.weight, self.bias, targets, classes=self.classes)


class MaskedLanguageModel(nn.Module):
    """What is trained: a masked-LM model of transformers and the loss at predicted positions.

    Args:
        backbone: `RobertaPreLayerNormForMaskedLM` or `RobertaForMaskedLM`; stays usable, `export` saves it.
        vocab_size: ids that exist, where the embedding has rows of padding.
    """

    def __init__(self, backbone: PreTrainedModel, vocab_size: int | None = None):
        super().__init__()
        self.backbone = backbone
        self.head = PredictionHead(backbone, vocab_size)
        self.vocab_size = vocab_size or backbone.config.vocab_size
        backbone.base_model.embeddings.token_type_embeddings.weight.requires_grad_(False)

    @property
    def config(self) -> PretrainedConfig:
        return self.backbone.config

    def forward(
        self, input_ids: Tensor, positions: Tensor, targets: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch.

        Args:
            input_ids: `(rows, length)` corrupted ids.
            positions: `(predicted,)` int64, places in the flattened batch, ascending. targets: the original ids there.
            attention_mask: `(rows, length)`, 0 for padding; None where no row has any.
        Returns:
            negative log-likelihood in nats, summed over `positions`: float32 scalar.
        """
        return self.head(self.hidden_states(input_ids, positions, attention_mask), targets)

    def hidden_states(self, input_ids: Tensor, positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`(predicted, width)`: the encoder's output at `positions`."""
        base = self.backbone.base_model
        hidden = base.embeddings(input_ids=input_ids)
        mask = None
        if attention_mask is not None:
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        *layers, last = base.encoder.layer
        for layer in layers:
            hidden = layer(hidden, mask)
        keep = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        hidden = layer_at_positions(last, hidden, positions, keep)
        return base.LayerNorm(hidden) if hasattr(base, "LayerNorm") else hidden


def layer_at_positions(layer: nn.Module, hidden: Tensor, positions: Tensor, keep: Tensor | None = None) -> Tensor:
    """A layer's output at some positions: keys and values of all, everything else of these alone.

    Args:
        layer: of `RobertaPreLayerNormEncoder` or `RobertaEncoder`, whose own submodules do the work.
        hidden: `(rows, length, width)` what goes in. positions: `(chosen,)` places in the flattened rows, ascending.
        keep: bool, broadcast to `(rows, heads, queries, length)`: what may be attended to.
    Returns:
        `(chosen, width)`.
    """
    rows, length, width = hidden.shape
    attention = layer.attention.self
    pre = getattr(layer.attention, "LayerNorm", None)
    normed = hidden if pre is None else pre(hidden)
    # Queries of a row stand together, in as many columns as the row with most of them needs.
    row = positions.div(length, rounding_mode="floor")
    counts = torch.bincount(row, minlength=rows)
    columns = int(counts.max()) if len(positions) else 1
    column = torch.arange(len(positions), device=positions.device) - (counts.cumsum(0) - counts)[row]
    slots = row * columns + column
    chosen = hidden.reshape(-1, width)[positions]
    queries = attention.query(chosen if pre is None else normed.reshape(-1, width)[positions])
    table = queries.new_zeros(rows * columns, width).index_copy(0, slots, queries)
    split = (attention.num_attention_heads, attention.attention_head_size)
    mixed = nn.functional.scaled_dot_product_attention(
        table.view(rows, columns, *split).transpose(1, 2),
        attention.key(normed).view(rows, length, *split).transpose(1, 2),
        attention.value(normed).view(rows, length, *split).transpose(1, 2),
        attn_mask=keep,
        dropout_p=attention.dropout.p if layer.training else 0.0,
    )
    mixed = mixed.transpose(1, 2).reshape(rows * columns, width)[slots]
    mixed = layer.attention.output(mixed, chosen)
    return layer.output(layer.intermediate(mixed), mixed)


def predicted(labels: Tensor) -> tuple[Tensor, Tensor]:
    """`(rows, length)` labels with -100 where nothing is predicted -> (positions, targets) for the model."""
    flat = labels.flatten()
    positions = (flat != -100).nonzero().squeeze(1)
    return positions, flat[positions]


def parameter_count(model: nn.Module) -> int:
    """Parameters that are trained, tied ones once, without rows of padding in the embedding."""
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if isinstance(model, MaskedLanguageModel):
        rows = model.config.vocab_size - model.vocab_size
        count -= rows * (model.config.hidden_size + 1)
    return count


def check_length(config: PretrainedConfig, length: int) -> None:
    """Raise InputError where blocks of `length` ids do not fit into the positions."""
    if length > config.max_position_embeddings - POSITION_OFFSET:
        raise InputError(
            f"data.block_length={length}, but model.max_position_embeddings={config.max_position_embeddings} holds "
            f"{config.max_position_embeddings - POSITION_OFFSET} tokens: give at least {length + POSITION_OFFSET} rows"
        )


def export(model: MaskedLanguageModel, folder: Path, tokenizer: Any, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a plain folder for `AutoModelForMaskedLM` and `AutoTokenizer`, without the embedding's rows of padding.

    Args:
        state: the model's state dict where its own parameters are in parts (ZeRO-3).
    """
    state = {name: tensor.detach().cpu() for name, tensor in (state or model.state_dict()).items()}
    prefix, rows = "backbone.", model.vocab_size
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    config = type(model.config).from_dict({**model.config.to_dict(), "vocab_size": rows})
    padded = model.config.vocab_size
    plain = type(model.backbone)(config)
    cut = {
        name: tensor[:rows].clone() if tensor.shape[:1] == (padded,) and padded != rows else tensor
        for name, tensor in weights.items()
    }
    plain.load_state_dict(cut, strict=True)
    plain.tie_weights()
    with quiet_transformers():
        plain.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
