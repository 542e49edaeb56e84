"""Load a pre-trained encoder for what comes after pre-training, and refuse what would be silently wrong.

transformers' own classes, pre-LayerNorm (`roberta-prelayernorm`) and post-LayerNorm (`roberta`). Refused: LayerNorms
that stand elsewhere than config.json says, weights of the encoder that are missing (they would be random), a tokenizer
with more entries than the model has embeddings.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mlm_masking.layouts import check_layout
from mlm_masking.tokenizer import load_tokenizer as read_tokenizer
from mlm_masking.weight_files import weight_names
from shared import InputError, hub
from shared.quiet import quiet_transformers
from shared.training import runs_root

PAPER = "mlm-masking"
HEADS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "none": (AutoModel, ()),
    "masked_lm": (AutoModelForMaskedLM, ()),
    "classification": (AutoModelForSequenceClassification, ("classifier.",)),
    "question_answering": (AutoModelForQuestionAnswering, ("qa_outputs.",)),
}


def locate_model(model: str | Path) -> Path:
    """The local folder of a model: a folder, a run of this paper, a source of it, or a hub id.

    A run is named by its experiment (`efficient-large-uniform-m0.40`, or `.../snapshots/update-2300` within one); a
    released checkpoint that has been converted is found under its own name. Raises InputError.
    """
    name = str(model)
    if not Path(name).expanduser().is_dir() and ".." not in Path(name).parts and not Path(name).is_absolute():
        last = Path(name).name
        for scale in ("paper", "laptop"):
            for inside in (f"{name}/model", name, f"convert_{last}/{last}"):
                folder = runs_root() / PAPER / scale / inside
                if (folder / "config.json").is_file():
                    return folder
    return Path(hub.model_path(name, PAPER))


def model_name(model: str | Path) -> str:
    """A short name for folders and tables: the hub id's or folder's last part, of `.../<run>/model` the run's."""
    parts = [part for part in Path(str(model)).parts if part not in ("/", ".", "..")] or ["model"]
    if parts[-1] == "model" and len(parts) > 1:
        return parts[-2]
    if len(parts) > 2 and parts[-2] == "snapshots":
        return f"{parts[-3]}-{parts[-1]}"
    return parts[-1]


def load_model(
    model: str | Path,
    head: str,
    *,
    outputs: int | None = None,
    pooler_dropout: float = 0.0,
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """A pre-trained encoder with a head.

    Args:
        head: "none", "masked_lm" (pre-trained too), "classification" or "question_answering" (new, random).
        outputs: logits of a classification head; 1 is a regression.
        pooler_dropout: dropout before and after the classification head's dense layer. 0.0 is the release's; 0.1 is
            what transformers does by default.
        device: None is CUDA where there is one.

    Raises:
        InputError: not a checkpoint, another architecture, misplaced LayerNorms, or weights that are missing.
    """
    if not 0 <= pooler_dropout < 1:
        raise InputError(f"pooler_dropout={pooler_dropout}: give a number in [0, 1)")
    folder = locate_model(model)
    config = read_config(folder)
    check_layout(config.model_type, weight_names(folder), str(model))
    model_class, new = HEADS[head]
    if outputs is not None:
        config.num_labels = outputs
    config.classifier_dropout = pooler_dropout
    options = {} if head in ("masked_lm", "classification", "question_answering") else {"add_pooling_layer": False}
    try:
        with quiet_transformers():  # its report of heads not loaded is made again below, as errors
            loaded, report = model_class.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **options
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"ckpt={model}: its weights cannot be loaded: {str(error).splitlines()[0]}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(new or ("\0",)))
    if missing:
        what = "it has no masked-LM head" if missing[0].startswith("lm_head") else "they would be random"
        raise InputError(f"ckpt={model} lacks {len(missing)} weights (first {missing[0]}): {what}")
    return loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def read_config(folder: Path):
    """The folder's configuration. Raises InputError where there is none."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json; give a folder written by save_pretrained, or convert a checkpoint")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}/config.json cannot be used: {str(error).splitlines()[0]}") from error


def load_tokenizer(model: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer that lies beside a model. Raises InputError for none, or one that does not fit the embedding."""
    folder = locate_model(model)
    tokenizer = read_tokenizer(folder)
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} entries, the model {vocab_size} embeddings: "
            "they do not belong together"
        )
    return tokenizer


def position_limit(config) -> int:
    """Tokens a row may have: RoBERTa's position numbers begin after the padding id, so 514 rows hold 512 tokens."""
    return config.max_position_embeddings - config.pad_token_id - 1
