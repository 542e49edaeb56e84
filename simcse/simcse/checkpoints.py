"""Reading encoders from disk: stock transformers folders, and checkpoints in the format of the authors' training code.

The authors' training writes `BertForCL`/`RobertaForCL`: encoder under `bert.`/`roberta.`, the tanh head as
`mlp.dense`, the MLM head as `lm_head`. AutoModel reads such a folder without a word and puts a *random* pooler in the
head's place; evaluating that with `cls` gives about 56.9 average STS, the most common user error. Everything here
looks at the tensors' names, so both formats are read correctly, and a head that is not there is reported as missing.

Pickled weights (`pytorch_model.bin`) are read with `weights_only=True`; code from a checkpoint is never run.
"""

import inspect
import json
import pickle
import re
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from shared import InputError
from shared.quiet import quiet_transformers

ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert", "electra", "modernbert")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What a checkpoint may hold beside the backbone: the sentence head, the MLM head, and the embeddings the latter may
# be tied to.
POOLER_KEY = re.compile(r"^(?:\w+\.)?pooler\.dense\.(weight|bias)$")
RELEASED_HEAD_KEY = re.compile(r"^mlp\.dense\.(weight|bias)$")
MLM_KEY = re.compile(r"^(?:cls\.predictions|lm_head)\.(?:transform\.)?(.+)$")
WORD_EMBEDDINGS_KEY = re.compile(r"^(?:\w+\.)?embeddings\.word_embeddings\.weight$")
MLM_NAMES = {"layer_norm": "LayerNorm", "gamma": "weight", "beta": "bias"}


def check_model_type(config: PreTrainedConfig) -> None:
    """Raise InputError unless the model type is one whose sentence embeddings are defined here."""
    if config.model_type not in (*ENCODERS, *DECODERS):
        raise InputError(
            f"model type is {config.model_type!r}, which is not supported; encoders: {', '.join(ENCODERS)}; "
            f"decoders (pooler avg or last): {', '.join(DECODERS)}"
        )


def read_config(path: str | Path) -> PreTrainedConfig:
    """The config of a folder or hub id. Raises InputError where there is none, or its model type is not supported."""
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise InputError(
            f"model is {str(path)!r}, a folder without config.json: give a folder written by save_pretrained"
        )
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model is {str(path)!r}, which cannot be read: {str(error).splitlines()[0]}") from error
    check_model_type(config)
    return config


def load_backbone(path: str | Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The stock transformers model without its pooler, with every weight from the checkpoint.

    Raises: InputError where a weight of the backbone is missing or has another shape: training on from random weights
        that were meant to be pre-trained ones is an error that no loss curve shows.
    """
    try:
        with quiet_transformers():
            model, report = AutoModel.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                output_loading_info=True,
                **without_pooler(config),
            )
    except pickle.UnpicklingError as error:  # torch's own message ends in advice to load it unsafely
        raise InputError(
            f"model is {str(path)!r}, whose pytorch_model.bin holds more than tensors and was not read: "
            "convert it to safetensors where it comes from"
        ) from error
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"model is {str(path)!r}, whose weights cannot be loaded: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"model is {str(path)!r}, which lacks {len(missing)} of the backbone's weights (first {missing[0]}): "
            f"its config.json says {config.model_type!r}; do weights and config belong together?"
        )
    return model


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """Constructor arguments that leave the model's own pooler out: unused weights break DistributedDataParallel."""
    parameters = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


class ExtraWeights:
    """The heads found in a checkpoint.

    Attributes:
        head, mlm: state dicts of SentenceHead and MaskedLMHead, or None.
        released_format: whether the checkpoint comes from the authors' training code, unconverted.
    """

    def __init__(self, path: str | Path, config: PreTrainedConfig, *, mlm: bool = False):
        tensors = read_tensors(path, lambda key: _is_extra(key, mlm))
        released = _renamed(tensors, RELEASED_HEAD_KEY)
        self.released_format = bool(released) or any(name.endswith("ForCL") for name in config.architectures or ())
        head = released or _renamed(tensors, POOLER_KEY)
        self.head = {f"dense.{name}": tensor for name, tensor in head.items()} or None
        self.mlm = _mlm_weights(tensors) if mlm else None


def read_tensors(path: str | Path, wanted) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose name satisfies `wanted`, on the CPU; the others are not read into memory."""
    folder = _folder(path)
    tensors = {}
    for file in _weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                tensors |= {key: opened.get_tensor(key) for key in opened.keys() if wanted(key)}  # noqa: SIM118
        else:
            stored = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
            tensors |= {key: tensor for key, tensor in stored.items() if wanted(key)}
    return tensors


def sentence_transformers_pooler(path: str | Path) -> str | None:
    """The pooler that a sentence-transformers folder declares in `1_Pooling/config.json`, or None."""
    file = Path(path) / "1_Pooling" / "config.json"
    if not file.is_file():
        return None
    declared = json.loads(file.read_text())
    modes = {"mean": "avg", "cls": "cls_before_pooler", "lasttoken": "last"}
    if declared.get("pooling_mode") in modes:
        return modes[declared["pooling_mode"]]
    flags = {
        "pooling_mode_mean_tokens": "avg",
        "pooling_mode_cls_token": "cls_before_pooler",
        "pooling_mode_lasttoken": "last",
    }
    return next((pooler for flag, pooler in flags.items() if declared.get(flag)), None)


def _folder(path: str | Path) -> Path:
    # AutoModel has put a hub model into the local cache by now; its files lie beside its config.
    return Path(path) if Path(path).is_dir() else Path(hf_hub_download(str(path), "config.json")).parent


def _weight_files(folder: Path) -> list[Path]:
    for name in WEIGHT_FILES:
        file = folder / name
        if file.is_file():
            if file.suffix != ".json":
                return [file]
            return [folder / shard for shard in sorted(set(json.loads(file.read_text())["weight_map"].values()))]
    raise InputError(f"model folder {str(folder)!r} has no weights: expected one of {', '.join(WEIGHT_FILES)}")


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"


def _is_extra(key: str, mlm: bool) -> bool:
    patterns = (POOLER_KEY, RELEASED_HEAD_KEY, *((MLM_KEY, WORD_EMBEDDINGS_KEY) if mlm else ()))
    return any(pattern.match(key) for pattern in patterns)


def _renamed(tensors: dict[str, Tensor], pattern: re.Pattern) -> dict[str, Tensor]:
    return {match.group(1): tensor for key, tensor in tensors.items() if (match := pattern.match(key))}


def _mlm_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """BERT's, RoBERTa's and the released code's MLM heads under one set of names; None where there is none."""
    found = {}
    for name, tensor in _renamed(tensors, MLM_KEY).items():
        found[".".join(MLM_NAMES.get(part, part) for part in name.split("."))] = tensor
    if "dense.weight" not in found:
        return None
    bias = found.pop("bias", None)
    found.setdefault("decoder.bias", bias)
    # Checkpoints whose output matrix is tied to the input embeddings store it once, under the embeddings' name.
    embeddings = next((tensor for key, tensor in tensors.items() if WORD_EMBEDDINGS_KEY.match(key)), None)
    found.setdefault("decoder.weight", embeddings)
    return {name: tensor for name, tensor in found.items() if tensor is not None}
