"""The names of a RoBERTa's weights: in the release's training checkpoints, in its published models, in transformers.

    fairseq       encoder.sentence_encoder.layers.0.self_attn.q_proj.weight ...        (plain training checkpoint)
    deepspeed     encoder.sentence_encoder.layers.0.attn_qkvw ...   (fused layers: q, k and v are blocks of one matrix)
    princeton_hf  roberta.encoder.layer.0.attention.self.query.weight ...   (published: pre-LayerNorm weights whose
                  config.json says `roberta`, the post-LayerNorm architecture, and per layer an unused
                  attention.self.LayerNorm)
    hf            roberta_prelayernorm.* or roberta.*: what transformers' own classes load

Loading `princeton_hf` with the stock RoBERTa class raises no error and gives another, wrong model; `check_layout` does.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from shared import InputError

LAYOUTS = ("fairseq", "deepspeed", "princeton_hf")
MODEL_TYPES = {"pre": "roberta-prelayernorm", "post": "roberta"}
PREFIXES = {"pre": "roberta_prelayernorm.", "post": "roberta."}

FAIRSEQ_KEY = re.compile(r"^(?:encoder|decoder)\.(?:sentence_encoder\.)?(?P<rest>.+)$")
LAYER_KEY = re.compile(r"^layers\.(?P<layer>\d+)\.(?P<rest>.+)$")
EMBEDDINGS = {
    "embed_tokens": "embeddings.word_embeddings",
    "embed_positions": "embeddings.position_embeddings",
    "layernorm_embedding": "embeddings.LayerNorm",
    "emb_layer_norm": "embeddings.LayerNorm",  # its name in versions before 2020
    "layer_norm": "LayerNorm",
}
LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
LAYER_NORMS = {
    "pre": {"self_attn_layer_norm": "attention.LayerNorm", "final_layer_norm": "intermediate.LayerNorm"},
    "post": {"self_attn_layer_norm": "attention.output.LayerNorm", "final_layer_norm": "output.LayerNorm"},
}
DEEPSPEED = {
    "attn_qkvw": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn_qkvb": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attn_ow": ("self_attn.out_proj.weight",),
    "attn_ob": ("self_attn.out_proj.bias",),
    "norm_w": ("self_attn_layer_norm.weight",),
    "norm_b": ("self_attn_layer_norm.bias",),
    "attn_nw": ("final_layer_norm.weight",),
    "attn_nb": ("final_layer_norm.bias",),
    "inter_w": ("fc1.weight",),
    "inter_b": ("fc1.bias",),
    "output_w": ("fc2.weight",),
    "output_b": ("fc2.bias",),
}
# Not weights of the pre-trained model: format marks, caches, heads of a fine-tuning.
FAIRSEQ_DROPPED = re.compile(r"(^|\.)(version|_float_tensor|classification_heads\..+)$")
PRINCETON_DROPPED = re.compile(r"(\.attention\.self\.LayerNorm\.\w+|\.position_ids|\.pooler\.dense\.\w+)$")
TIED = {"lm_head.decoder.weight": "embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"}


def detect_layout(names: Iterable[str]) -> str:
    """Which of `LAYOUTS` (or hf) the names of a checkpoint follow. Raises InputError for none of them."""
    names = set(names)
    if any(name.endswith((".attn_qkvw", ".attn_qkvb")) for name in names):
        return "deepspeed"
    if any(".self_attn.q_proj." in name for name in names):
        return "fairseq"
    if any(name.startswith("roberta_prelayernorm.") for name in names):
        return "hf"
    if any(name.startswith("roberta.encoder.layer.") for name in names):
        return "princeton_hf" if is_pre_layer_norm(names) else "hf"
    sample = ", ".join(sorted(names)[:3])
    raise InputError(f"the checkpoint's names ({sample}, ...) follow none of the layouts {', '.join(LAYOUTS)}, hf")


def is_pre_layer_norm(names: Iterable[str]) -> bool:
    """Whether weights in transformers' names are those of a pre-LayerNorm model, whatever their config.json says."""
    names = set(names)
    telling = (".attention.self.LayerNorm.", ".attention.LayerNorm.", ".intermediate.LayerNorm.")
    has_layers = any(".encoder.layer." in name or name.startswith("encoder.layer.") for name in names)
    lacks_post = not any(name.endswith(".output.LayerNorm.weight") for name in names)
    return any(mark in name for name in names for mark in telling) or (has_layers and lacks_post)


def check_layout(model_type: str, names: Iterable[str], where: str) -> None:
    """Refuse weights whose LayerNorms stand elsewhere than the configuration's model type has them.

    Raises:
        InputError: pre-LayerNorm weights under `roberta`, or post-LayerNorm weights under `roberta-prelayernorm`.
    """
    if model_type not in MODEL_TYPES.values():
        raise InputError(f"{where}: model_type is {model_type!r}; this is about {' and '.join(MODEL_TYPES.values())}")
    pre = is_pre_layer_norm(names)
    if pre == (model_type == "roberta-prelayernorm"):
        return
    found, claimed = ("pre", "post") if pre else ("post", "pre")
    fix = (
        f"convert it first: python -m mlm_masking.convert path={where} output_dir=<folder>"
        if pre
        else f"its config.json should say {MODEL_TYPES[found]!r}"
    )
    raise InputError(
        f"{where}: config.json says model_type {model_type!r} ({claimed}-LayerNorm), but the weights are those of a "
        f"{found}-LayerNorm model; loading it so would give a wrong model without an error: {fix}"
    )


def to_transformers(tensors: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], str, list[str]]:
    """Rename a checkpoint's weights for transformers' `RobertaPreLayerNormForMaskedLM` (or `RobertaForMaskedLM`).

    Args:
        tensors: the state dict, in one of `LAYOUTS`.

    Returns: (weights, "pre" or "post", names that were dropped because they are no weights of the model). Tied weights
        appear once; token type embeddings, which fairseq does not have, are one row of zeros.

    Raises:
        InputError: an unknown layout or name, blocks of unequal size, or a decoder that is not tied.
    """
    if layout not in LAYOUTS:
        raise InputError(f"from={layout}: give one of {', '.join(LAYOUTS)}")
    if layout == "princeton_hf":
        return _from_princeton(tensors)
    dropped = [name for name in tensors if FAIRSEQ_DROPPED.search(name)]
    plain = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    norm = "pre" if any(re.search(r"(?<!lm_head)\.layer_norm\.weight$", name) for name in plain) else "post"
    if layout == "deepspeed":
        if norm == "post":
            raise InputError("the checkpoint has no final LayerNorm: only pre-LayerNorm DeepSpeed layers are known")
        plain = unpack_deepspeed(plain)
    return _from_fairseq(plain, norm), norm, dropped


def unpack_deepspeed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeepSpeed's fused layers under fairseq's names; q, k and v are three equal blocks of rows, in this order."""
    unpacked: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parent, _, leaf = name.rpartition(".")
        if leaf not in DEEPSPEED:
            unpacked[name] = tensor
            continue
        targets = DEEPSPEED[leaf]
        if len(tensor) % len(targets):
            raise InputError(f"{name} has {len(tensor)} rows, not three equal blocks of q, k and v")
        for target, block in zip(targets, tensor.chunk(len(targets)), strict=True):
            unpacked[f"{parent}.{target}"] = block.contiguous()
    return unpacked


def _from_fairseq(tensors: Mapping[str, Tensor], norm: str) -> dict[str, Tensor]:
    prefix = PREFIXES[norm]
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = FAIRSEQ_KEY.match(name)
        target = _fairseq_target(match["rest"], norm) if match else None
        if target is None:
            raise InputError(f"{name} has no place in a {norm}-LayerNorm RoBERTa: is this another architecture?")
        weights[target if target.startswith("lm_head.") else prefix + target] = tensor
    embedding = f"{prefix}embeddings.word_embeddings.weight"
    if embedding not in weights:
        raise InputError("the checkpoint has no embed_tokens.weight: it is not a whole RoBERTa")
    weights[f"{prefix}embeddings.token_type_embeddings.weight"] = torch.zeros_like(weights[embedding][:1])
    decoder = weights.pop("lm_head.weight", None)
    if decoder is not None and not torch.equal(decoder, weights[embedding]):
        raise InputError("lm_head.weight differs from embed_tokens.weight: an untied head cannot be converted")
    return weights


def _fairseq_target(rest: str, norm: str) -> str | None:
    """transformers' name, without the model's prefix, of a fairseq name without the encoder's; None for no place."""
    if rest.startswith("lm_head."):
        return rest
    layer = LAYER_KEY.match(rest)
    module, _, parameter = (layer["rest"] if layer else rest).rpartition(".")
    if layer:
        target = (LAYER | LAYER_NORMS[norm]).get(module)
        return None if target is None else f"encoder.layer.{layer['layer']}.{target}.{parameter}"
    target = EMBEDDINGS.get(module)
    return None if target is None else f"{target}.{parameter}"


def _from_princeton(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, list[str]]:
    dropped = [name for name in tensors if PRINCETON_DROPPED.search(name)]
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in dropped:
            weights[re.sub(r"^roberta\.", PREFIXES["pre"], name)] = tensor
    for copy, original in TIED.items():
        kept = weights.get(original, weights.get(PREFIXES["pre"] + original))
        found = weights.pop(copy, None)
        if found is not None and kept is None:
            weights[original] = found
        elif found is not None and not torch.equal(found, kept):
            raise InputError(f"{copy} differs from {original}: an untied head cannot be converted")
    return weights, "pre", dropped
