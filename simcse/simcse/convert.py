"""From a training checkpoint to a plain AutoModel folder (SimCSE, the release's `simcse_to_huggingface`).

    python -m simcse.convert path=<checkpoint> output_dir=<folder> [eval_pooler=cls_before_pooler]

Checkpoints of the authors' training code name the encoder `bert.*`/`roberta.*` and the head `mlp.dense`; AutoModel
reads them without complaint and gives them a random pooler. The folder written here is safetensors with the head as the
pooler, so that `AutoModel.from_pretrained(folder).pooler_output` is the `cls` embedding, and its config.json names the
pooler to evaluate with. What this project trains is saved that way from the start; reading an old checkpoint works
without converting it, too.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import Run
from shared.training import run_folder
from simcse.checkpoints import ExtraWeights, read_config
from simcse.encoder import SentenceEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """What a checkpoint turned out to be."""

    encoder: SentenceEncoder
    tokenizer: PreTrainedTokenizerBase | None
    released_format: bool

    def save(self, folder: str | Path) -> Path:
        """Write the AutoModel folder, tokenizer included where the checkpoint has one."""
        return self.encoder.save_pretrained(folder, self.tokenizer)


def read_checkpoint(path: str | Path, eval_pooler: str | None = None) -> Conversion:
    """Read a checkpoint in either format.

    Args:
        eval_pooler: the pooler to evaluate with; None is what the checkpoint says, else the rule of
            `SentenceEncoder.from_pretrained`.

    Raises: InputError where the checkpoint cannot be read, or has no weights for the pooler.
    """
    extra = ExtraWeights(path, read_config(path))
    if extra.head is not None and eval_pooler in ("cls", "cls_before_pooler"):
        # The head stays in the folder even where it is not evaluated with: training on from it needs it.
        options = {"pooler": "cls", "mlp_only_train": eval_pooler == "cls_before_pooler"}
    else:
        options = {"pooler": eval_pooler}
    encoder = SentenceEncoder.from_pretrained(path, **options).eval()
    return Conversion(encoder, _tokenizer(path), extra.released_format)


def _tokenizer(path: str | Path) -> PreTrainedTokenizerBase | None:
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        logger.warning("%s has no tokenizer to copy (%s)", path, str(error).splitlines()[0])
        return None


@entrypoint(config_name="convert")
def main(cfg: DictConfig) -> None:
    path = hub.model_path(cfg.path, cfg.paper)
    folder = run_folder(cfg.paper, cfg.scale, cfg.experiment, cfg.output_dir)
    if Path(path).resolve() == Path(folder).resolve():
        raise InputError(f"output_dir is {str(folder)!r}, the checkpoint itself: give another folder")
    checkpoint = read_checkpoint(path, cfg.eval_pooler)
    run = Run(cfg.paper, cfg.experiment, cfg.scale, output_dir=cfg.output_dir, config=cfg, seed=cfg.seed)
    checkpoint.save(run.output_dir)
    run.metrics |= {
        "released_format": checkpoint.released_format,
        "head": checkpoint.encoder.head is not None,
        "eval_pooler": checkpoint.encoder.eval_pooler,
        "parameters": sum(parameter.numel() for parameter in checkpoint.encoder.parameters()),
        "tokenizer": checkpoint.tokenizer is not None,
    }
    run.finish()


if __name__ == "__main__":
    main()
