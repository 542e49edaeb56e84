"""Checkpoints of the release as transformers' `roberta-prelayernorm`, safetensors only.

    python -m mlm_masking.convert path=efficient_mlm_m0.40                       # published model with a wrong type
    python -m mlm_masking.convert path=checkpoint_best.pt from=deepspeed output_dir=large-40

The layout is seen from the weights' names unless `from` says it (`layouts.py` has the maps). Every weight must find its
place and every place its weight, or nothing is written; what is dropped because the model does not use it is listed.
A pickled checkpoint is read with `weights_only=True`.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, RobertaConfig, RobertaPreLayerNormConfig

from mlm_masking.encoders import locate_model, model_name
from mlm_masking.layouts import LAYOUTS, MODEL_TYPES, PREFIXES, TIED, detect_layout, to_transformers
from mlm_masking.tokenizer import load_tokenizer
from mlm_masking.weight_files import read_tensors
from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import Run
from shared.training import run_folder

log = logging.getLogger(__name__)

PAPER = "mlm-masking"
CONFIGS = {"pre": RobertaPreLayerNormConfig, "post": RobertaConfig}
HEAD_SIZES = {512: 8, 768: 12, 1024: 16}  # attention heads of the paper's models by width
TOKENIZER_FILES = ("vocab.json", "merges.txt")


@dataclass(frozen=True)
class Conversion:
    """A checkpoint as a transformers model, the layout it was in, and the names that were dropped."""

    model: PreTrainedModel
    layout: str
    norm: str
    dropped: list[str]


def convert(
    tensors: Mapping[str, Tensor],
    layout: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    heads: int | None = None,
) -> Conversion:
    """A state dict in the release's layouts -> transformers' masked-LM model, float32.

    Args:
        layout: "fairseq", "deepspeed" or "princeton_hf"; None is what the names say.
        options: the training options saved beside it; `encoder_attention_heads` is read.
        heads: attention heads, which the weights do not tell; None: the options, else the paper's for this width.

    Raises:
        InputError: nothing to convert, an unknown name, a weight too many or too few, or the heads are not known.
    """
    found = detect_layout(tensors)
    if found == "hf":
        raise InputError("the weights are in transformers' own layout already: nothing to convert")
    if layout is not None and layout != found:
        if layout not in LAYOUTS:
            raise InputError(f"from={layout}: give one of {', '.join(LAYOUTS)}")
        raise InputError(
            f"from={layout}, but the weights' names are those of {found}: say from={found}, or leave it out"
        )
    weights, norm, dropped = to_transformers(tensors, found)
    config = infer_config(weights, norm, options or {}, heads)
    model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    try:
        report = model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    except RuntimeError as error:
        raise InputError(f"the checkpoint's shapes do not fit together: {str(error).splitlines()[1].strip()}") from None
    missing = [name for name in report.missing_keys if name not in TIED]
    if missing or report.unexpected_keys:
        name, what = (missing[0], "lacks") if missing else (report.unexpected_keys[0], "has a weight too many,")
        raise InputError(f"the checkpoint {what} {name}: it is not a whole {MODEL_TYPES[norm]} masked-LM model")
    model.tie_weights()
    return Conversion(model.eval(), found, norm, dropped)


def infer_config(
    weights: Mapping[str, Tensor], norm: str, options: Mapping[str, Any], heads: int | None
) -> RobertaConfig | RobertaPreLayerNormConfig:
    """The configuration that weights in transformers' names imply. Raises InputError where they do not tell enough."""
    prefix = PREFIXES[norm]
    shapes = {name.removeprefix(prefix): tensor.shape for name, tensor in weights.items()}
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layer.")}
    try:
        vocabulary, width = shapes["embeddings.word_embeddings.weight"]
        positions = shapes["embeddings.position_embeddings.weight"][0]
        inner = shapes["encoder.layer.0.intermediate.dense.weight"][0]
    except KeyError as error:
        raise InputError(f"the checkpoint lacks {error.args[0]}: it is not a whole RoBERTa") from None
    heads = heads or options.get("encoder_attention_heads") or HEAD_SIZES.get(width)
    if not heads:
        raise InputError(f"attention heads of a model of width {width} are not known: give heads=<number>")
    if width % int(heads):
        raise InputError(f"heads={heads} does not divide the width {width}")
    return CONFIGS[norm](
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=int(heads),
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )


def save(conversion: Conversion, tokenizer_folder: Path | None, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer; the folder appears whole or not at all.

    Raises:
        InputError: a tokenizer with more entries than embeddings.
    """
    vocabulary = conversion.model.config.vocab_size
    tokenizer = None
    if tokenizer_folder is not None:
        tokenizer = load_tokenizer(tokenizer_folder)
        if len(tokenizer) > vocabulary:
            raise InputError(
                f"tokenizer={tokenizer_folder} has {len(tokenizer)} entries, the checkpoint {vocabulary} embeddings: "
                "the dictionary does not belong to it"
            )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        conversion.model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_tokenizer(wanted: str | None, path: Path, vocabulary: int) -> Path | None:
    """The folder of a tokenizer: `wanted`, else beside the checkpoint, else RoBERTa's where the vocabulary is its size.

    Raises:
        InputError: `wanted` has no tokenizer.
    """
    if wanted is not None:
        folder = hub.locate(PAPER, wanted) if wanted == "roberta_tokenizer" else Path(wanted).expanduser()
        if not (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name in TOKENIZER_FILES):
            raise InputError(
                f"tokenizer={wanted}: {folder} has neither tokenizer.json nor {', '.join(TOKENIZER_FILES)}"
            )
        return folder
    beside = path if path.is_dir() else path.parent
    if all((beside / name).is_file() for name in TOKENIZER_FILES):
        return beside
    if vocabulary == 50265:
        try:
            return hub.locate(PAPER, "roberta_tokenizer")
        except hub.NotAvailable:
            pass
    log.warning("no tokenizer found for %s: give tokenizer=<folder with %s>", path, " and ".join(TOKENIZER_FILES))
    return None


@entrypoint(config_name="convert")
def main(cfg: DictConfig) -> None:
    """Convert one checkpoint."""
    path = Path(str(cfg.path)).expanduser()
    path = path if path.is_file() else locate_model(str(cfg.path))
    name = path.stem if path.is_file() else model_name(cfg.path)
    experiment = cfg.name or f"convert_{name}"
    folder = run_folder(PAPER, cfg.scale, experiment, cfg.output_dir) / name
    if folder.resolve() == path.resolve():
        raise InputError(f"output_dir={cfg.output_dir} would overwrite the checkpoint itself: give another folder")
    tensors, options = read_tensors(path)
    conversion = convert(tensors, cfg["from"], options=options, heads=cfg.heads)
    tokenizer_folder = find_tokenizer(cfg.tokenizer, path, conversion.model.config.vocab_size)
    run = Run(PAPER, experiment, cfg.scale, cfg.output_dir, config=cfg)
    save(conversion, tokenizer_folder, folder)
    run.metrics |= {
        "layout": conversion.layout,
        "norm": conversion.norm,
        "model_type": conversion.model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in conversion.model.parameters()),
        "dropped": conversion.dropped,
        "tokenizer": tokenizer_folder is not None,
    }
    run.finish()
    print(f"model: {folder}")


if __name__ == "__main__":
    main()
