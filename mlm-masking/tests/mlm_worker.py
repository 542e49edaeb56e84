"""What torchrun starts for `test_mlm_distributed`: several trainings, one after another, in the same processes.

    torchrun --nproc-per-node=2 mlm_worker.py JOBS.json        # [{"overrides": [...], "gradient": file or null}, ...]

Most of a launch's time goes into imports, so there is one launch for all of them.
"""

import json
import sys
from pathlib import Path

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

import shared.launch  # noqa: F401  (puts the launch group on Hydra's search path)
from mlm_masking.pretrain import build_arguments, load_text, pretrain, train
from shared import InputError

CONFIGS = Path(__file__).parents[1] / "configs"


def compose(overrides: list[str]) -> DictConfig:
    """The configuration of `python -m mlm_masking.pretrain` with these overrides."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("config", overrides=overrides)


def first_gradient(cfg: DictConfig, folder: Path) -> dict[str, Tensor]:
    """What the optimiser is given at the last update of a run, by the names of the parameters."""
    kept: dict[str, Tensor] = {}

    def keep(trainer) -> None:
        original = trainer.create_optimizer

        def create(model=None):
            optimizer = original(model)
            named = list(trainer.plain_model.named_parameters())
            optimizer.register_step_pre_hook(
                lambda *_: kept.update({name: p.grad.clone() for name, p in named if p.grad is not None})
            )
            return optimizer

        trainer.create_optimizer = create

    args = build_arguments(cfg, folder)
    with args.main_process_first(local=False):
        text = load_text(cfg)
    train(cfg, folder, text, args=args, on_trainer=keep)
    return kept


def main(jobs: Path) -> None:
    import deepspeed

    # Its reduction over shared memory would be compiled first, for minutes.
    deepspeed.ops.__compatible_ops__.clear()
    for job in json.loads(jobs.read_text()):
        cfg = compose(job["overrides"])
        if job["gradient"] is not None:
            gradient = first_gradient(cfg, Path(cfg.output_dir))
            if torch.distributed.get_rank() == 0:
                save_file(gradient, job["gradient"])
            continue
        try:
            pretrain(cfg)
        except InputError as error:
            print("REFUSED", error, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
