"""MeZO as the optimiser of transformers' Trainer: the same weights as a plain loop over the same batches."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, OPTConfig, TrainingArguments

from mezo import MeZO
from mezo.modes import Mode, attach, trainable
from mezo.trainer import MeZOTrainer
from shared import InputError


class Rows(Dataset):
    def __init__(self) -> None:
        torch.manual_seed(3)
        self.ids = torch.randint(5, 50, (24, 7))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[row], "labels": self.ids[row]}


class Recording(MeZOTrainer):
    """Keeps the batches, so that a plain loop can be given the same ones."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen = [*getattr(self, "seen", []), {name: tensor.clone() for name, tensor in inputs.items()}]
        return super().training_step(model, inputs, num_items_in_batch)


def build() -> nn.Module:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=32))
    attach(model, Mode("lora", rank=2))
    return model


def arguments(folder, **options) -> TrainingArguments:
    defaults = {
        "per_device_train_batch_size": 6, "max_steps": 8, "learning_rate": 0.01, "lr_scheduler_type": "constant",
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **{**defaults, **options})


@pytest.mark.parametrize("restore", ["exact", "inplace"])
def test_trainer_and_a_plain_loop_end_with_the_same_weights(tmp_path, restore):
    model = build()
    trainer = Recording(model, arguments(tmp_path), train_dataset=Rows(), mezo={"eps": 1e-2, "restore": restore})
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]

    plain = build().eval()
    optimizer = MeZO(plain.named_parameters(), 0.01, 1e-2, restore=restore, model=plain if restore == "exact" else None)
    losses = [optimizer.step(lambda batch=batch: plain(**batch).loss) for batch in trainer.seen]
    assert len(losses) == 8
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(trainable(model), trainable(plain), strict=True))
    assert logged == pytest.approx(losses, abs=1e-4)
    fresh = build()
    assert not all(torch.equal(a, b) for (_, a), (_, b) in zip(trainable(model), trainable(fresh), strict=True))


def test_the_schedule_of_trainer_is_the_rate_of_the_steps(tmp_path):
    trainer = MeZOTrainer(
        build(), arguments(tmp_path, lr_scheduler_type="linear", max_steps=4), train_dataset=Rows(),
        mezo={"trajectory": tmp_path / "run.mzt"},
    )  # fmt: skip
    trainer.train()
    trainer.mezo_optimizer.close()
    from mezo.trajectory import read

    assert [step.lr for step in read(tmp_path / "run.mzt")[1]] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_a_checkpoint_of_trainer_goes_on_with_the_next_seed(tmp_path):
    whole = build()
    MeZOTrainer(whole, arguments(tmp_path / "whole"), train_dataset=Rows(), mezo={"n": 2}).train()
    options = {"save_strategy": "steps", "save_steps": 5}
    cut = arguments(tmp_path / "cut", **options, max_steps=5)
    first = MeZOTrainer(build(), cut, train_dataset=Rows(), mezo={"n": 2})
    first.train()
    second = build()
    again = MeZOTrainer(second, arguments(tmp_path / "cut", **options), train_dataset=Rows(), mezo={"n": 2})
    again.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-5"))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(trainable(whole), trainable(second), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2 does not go with MeZO"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing=True does not go with MeZO"),
        ({"bf16": True}, "bf16=True does not go with MeZO: load the model with dtype"),
    ],
)
def test_arguments_that_belong_to_gradients_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        MeZOTrainer(build(), arguments(tmp_path, **options), train_dataset=Rows())


def test_another_optimizer_is_refused(tmp_path):
    model = build()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="MeZO is the optimiser here"):
        MeZOTrainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=(sgd, None))
