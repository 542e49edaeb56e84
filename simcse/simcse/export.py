"""Export an encoder to a sentence-transformers folder, so that every tool that reads those can use and evaluate it.

    from simcse.export import export
    export(encoder, tokenizer, "exported")
    SentenceTransformer("exported").encode(["..."])      # equal to embed_sentences(encoder, tokenizer, ["..."])

Every pooler has a counterpart there: a pooling mode, for `cls` followed by a tanh layer with the head's weights, and
for averages of two layers preceded by a weighted layer pooling whose weights are 1 for the two and 0 for the rest.
"""

import logging
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from shared import InputError
from simcse.checkpoints import without_pooler
from simcse.encoder import SentenceEncoder
from simcse.pooling import LAYERS_AVERAGED

logger = logging.getLogger(__name__)

POOLING_MODES = {"cls": "cls", "cls_before_pooler": "cls", "last": "lasttoken"}


def export(
    encoder: SentenceEncoder,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    max_length: int | None = None,
    normalize: bool = False,
) -> Path:
    """Write a folder that `SentenceTransformer(folder)` loads, and SentenceEncoder.from_pretrained as well.

    Args:
        encoder: its `eval_pooler` is what is exported.
        tokenizer: its tokenizer.
        folder: new or empty.
        max_length: tokens per sentence; None is the model's limit.
        normalize: vectors of length one, as SimCSE.encode gives.

    Raises: InputError if sentence-transformers is missing, the folder holds something, `max_length` is more than the
        model's, or the pooler has no counterpart.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize
    except ImportError:
        raise InputError("export needs sentence-transformers: pip install sentence-transformers") from None
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"folder {folder} exists and is not empty: give a new one")
    length = encoder.max_length if max_length is None else max_length
    if not 1 <= length <= encoder.max_length:
        raise InputError(f"max_length is {max_length}, but must be from 1 to {encoder.max_length}, the model's limit")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        plain = encoder.save_pretrained(Path(temporary) / "plain", tokenizer)
        modules = [*_modules(encoder, plain, length), *([Normalize()] if normalize else [])]
        SentenceTransformer(modules=modules, device="cpu").save(str(Path(temporary) / "exported"))
        (Path(temporary) / "exported").replace(folder)
    logger.info("exported to %s: SentenceTransformer(%r)", folder, str(folder))
    return folder


def _modules(encoder: SentenceEncoder, plain: Path, max_length: int) -> list[nn.Module]:
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer, WeightedLayerPooling

    pooler, hidden = encoder.eval_pooler, encoder.config.hidden_size
    layers = LAYERS_AVERAGED.get(pooler, (-1,))
    mode = "mean" if pooler in LAYERS_AVERAGED else POOLING_MODES.get(pooler)
    if mode is None:
        raise InputError(f"pooler {pooler!r} has no counterpart in sentence-transformers: set another eval_pooler")
    transformer = Transformer(
        str(plain),
        max_seq_length=max_length,
        # Without a head of ours there must be none in the export: transformers would fill it at random.
        model_kwargs=without_pooler(encoder.config) if encoder.head is None else {},
        config_kwargs={"output_hidden_states": True} if len(layers) > 1 else {},
    )
    modules: list[nn.Module] = [transformer]
    if len(layers) > 1:
        depth = encoder.config.num_hidden_layers
        start = min(range(depth + 1)[layer] for layer in layers)
        weights = torch.zeros(depth + 1)
        weights[list(layers)] = 1
        averaged = WeightedLayerPooling(hidden, num_hidden_layers=depth, layer_start=start)
        averaged.layer_weights = nn.Parameter(weights[start:].clone())
        modules.append(averaged)
    modules.append(Pooling(hidden, pooling_mode=mode))
    if pooler == "cls":
        head = encoder.head.dense
        modules.append(
            Dense(hidden, hidden, activation_function=nn.Tanh(), init_weight=head.weight, init_bias=head.bias)
        )
    return modules
