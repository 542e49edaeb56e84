"""From `model=<name>` to weights: causal or masked, in which precision, and with which parts trained.

`tiny` and `tiny-causal` (or tiny-opt, tiny-llama, tiny-qwen2) are trained on the spot; everything else is a folder, a
source of the mirror, or a hub id. A masked model is read by LM-BFF's `Pretrained`, which refuses one whose decoder is
missing (it would be random, and MeZO would stay near chance).
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lm_bff.model_names import TINY, model_folder
from shared import InputError, hub
from shared.quiet import quiet_transformers

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MASKED_TYPES = (
    "roberta", "roberta-prelayernorm", "xlm-roberta", "bert", "deberta-v2", "electra", "distilbert", "albert",
    "modernbert",
)  # fmt: skip
FAMILIES = ("auto", "causal", "masked")
TINY_CAUSAL = {"tiny-causal": "opt", "tiny-opt": "opt", "tiny-llama": "llama", "tiny-qwen2": "qwen2"}


def folder_of(name: str) -> Path:
    """A local folder for a model's name; tiny ones are trained now if they are not cached."""
    if name == TINY:
        return model_folder(name)
    if name in TINY_CAUSAL:
        from mezo.tiny_causal import TinyCausal, tiny_causal

        return tiny_causal(settings=TinyCausal(family=TINY_CAUSAL[name]))
    return Path(hub.model_path(name, "mezo"))


def family_of(folder: Path, family: str = "auto") -> str:
    """ "causal" or "masked", by the architecture that the folder names."""
    if family not in FAMILIES:
        raise InputError(f"family={family}: give one of {', '.join(FAMILIES)}")
    if family != "auto":
        return family
    config = read_config(folder)
    architectures = " ".join(config.architectures or ())
    return "masked" if "MaskedLM" in architectures or config.model_type in MASKED_TYPES else "causal"


def read_config(folder: Path):
    """The folder's config; InputError where there is none."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model={folder} cannot be read: {str(error).splitlines()[0]}") from None


def dtype_of(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(f"dtype={name}: give one of {', '.join(DTYPES)}")
    return DTYPES[name]


def device_of(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_causal(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    attention: str | None = None,
) -> tuple[nn.Module, PreTrainedTokenizerBase]:  # fmt: skip
    """A causal language model in evaluation mode, and its tokenizer.

    Raises InputError for a quantised model, one whose weights are incomplete, or a tokenizer of another model.
    """
    config = read_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"model={folder} is quantised: quantised weights cannot be perturbed; load an unquantised one")
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, trust_remote_code=False, output_loading_info=True, **options
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"model={folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"model={folder} lacks {len(missing)} weights (first {missing[0]}), which would be random")
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise InputError(
            f"model={folder}: its tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}: they do not "
            "belong together"
        )
    return model.to(device).eval(), tokenizer
