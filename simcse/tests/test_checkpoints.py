"""Saving, loading and refusing: what is written is plain, what is read is what was meant."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM

from shared import InputError
from simcse.model import ContrastiveModel, SentenceEncoder

IDS = torch.tensor([[2, 40, 50, 60, 3, 0], [2, 41, 51, 3, 0, 0]])
MASK = (IDS != 0).long()


def embedding(encoder: SentenceEncoder) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval().embed(IDS, MASK)


@pytest.fixture
def plain_folder(tiny_config, tmp_path):
    """A function: what transformers itself saves, with or without a pooler."""

    def save(pooler: bool, name: str = "plain"):
        BertModel(tiny_config, add_pooling_layer=pooler).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def test_saved_folder_is_plain_for_automodel(tiny_encoder_folder):
    model, report = AutoModel.from_pretrained(tiny_encoder_folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pooled = model.eval()(input_ids=IDS, attention_mask=MASK).pooler_output
    encoder = SentenceEncoder.from_pretrained(tiny_encoder_folder)
    assert encoder.eval_pooler == "cls"
    torch.testing.assert_close(embedding(encoder), pooled.detach())
    assert not list(tiny_encoder_folder.glob("*.bin"))


@pytest.mark.parametrize("pooler", ["cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last", "avg_static_last"])
def test_every_pooler_survives_saving(tiny_config, tmp_path, pooler):
    encoder = SentenceEncoder.from_config(tiny_config, pooler=pooler)
    encoder.save_pretrained(tmp_path / "saved")
    again = SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert (again.train_pooler, again.eval_pooler) == (pooler, pooler)
    assert torch.equal(embedding(again), embedding(encoder))
    assert (again.head is not None) == (pooler == "cls")


def test_mlp_only_train_uses_the_head_in_training_and_not_in_evaluation(tiny_config, tmp_path):
    encoder = SentenceEncoder.from_config(tiny_config, pooler="cls", mlp_only_train=True)
    encoder.save_pretrained(tmp_path / "saved")
    again = SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert (again.train_pooler, again.eval_pooler, again.mlp_only_train) == ("cls", "cls_before_pooler", True)
    hidden = again.eval().hidden_states(IDS, MASK)[:, 0]
    assert torch.equal(embedding(again), hidden)
    ContrastiveModel(again, dropout=0.0).train()
    torch.testing.assert_close(again.embed(IDS, MASK), again.head(hidden))
    again.eval_pooler = "cls"
    torch.testing.assert_close(again.eval().embed(IDS, MASK), again.head(hidden))


def test_config_carries_the_evaluation_pooler_and_the_tokenizer_is_saved_along(tiny_encoder_folder, tiny_tokenizer):
    config = json.loads((tiny_encoder_folder / "config.json").read_text())
    assert config["simcse"] == {"eval_pooler": "cls", "train_pooler": "cls", "mlp_only_train": False}
    assert config["architectures"] == ["BertModel"]
    text = "a man plays the guitar."
    assert AutoTokenizer.from_pretrained(tiny_encoder_folder)(text).input_ids == tiny_tokenizer(text).input_ids


def test_saving_over_a_folder_keeps_what_else_is_in_it(tiny_config, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    SentenceEncoder.from_config(tiny_config).save_pretrained(tmp_path / "saved")
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert [folder.name for folder in tmp_path.iterdir()] == ["saved"]


def test_head_is_random_or_loaded_as_asked(tiny_encoder_folder):
    loaded = SentenceEncoder.from_pretrained(tiny_encoder_folder, pooler="cls")
    fresh = SentenceEncoder.from_pretrained(tiny_encoder_folder, pooler="cls", head="random")
    stored = load_file(tiny_encoder_folder / "model.safetensors")["pooler.dense.weight"]
    assert torch.equal(loaded.head.dense.weight, stored)
    assert not torch.allclose(fresh.head.dense.weight, stored)
    assert fresh.head.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not fresh.head.dense.bias.any()
    for name, parameter in fresh.backbone.named_parameters():
        assert torch.equal(parameter, loaded.backbone.get_parameter(name))


def test_cls_without_pooler_weights_is_refused(plain_folder):
    folder = plain_folder(pooler=False)
    for pooler in (None, "cls"):
        with pytest.raises(InputError, match=r"pooler is 'cls', but model .* has no pooler weights.*head=random"):
            SentenceEncoder.from_pretrained(folder, pooler=pooler)
    encoder = SentenceEncoder.from_pretrained(folder, pooler="avg")
    with pytest.raises(InputError, match="this encoder has no pooler weights"):
        encoder.eval_pooler = "cls"
    with pytest.raises(InputError, match="has no pooler weights"):
        SentenceEncoder.from_pretrained(plain_folder(pooler=True), pooler="cls", head="none")
    assert SentenceEncoder.from_pretrained(folder, pooler="cls", head="random").head is not None


@pytest.mark.parametrize(
    ("name", "pooler", "expected"),
    [
        ("sup-model", True, "cls"),
        ("unsup-model", True, "cls_before_pooler"),
        ("unsup-model", False, "cls_before_pooler"),
    ],
)
def test_default_pooler_without_a_record_is_the_releases_rule(plain_folder, name, pooler, expected):
    encoder = SentenceEncoder.from_pretrained(plain_folder(pooler, name))
    assert encoder.eval_pooler == expected
    assert (encoder.head is not None) == pooler


def test_record_in_the_config_goes_before_the_name_of_the_folder(tiny_config, tmp_path):
    SentenceEncoder.from_config(tiny_config, pooler="avg").save_pretrained(tmp_path / "unsup-avg")
    assert SentenceEncoder.from_pretrained(tmp_path / "unsup-avg").eval_pooler == "avg"


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "avg"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls_before_pooler"),
        ({"pooling_mode": "mean"}, "avg"),
    ],
)
def test_sentence_transformers_folders_declare_their_pooler(plain_folder, declared, expected):
    folder = plain_folder(pooler=True)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(declared))
    assert SentenceEncoder.from_pretrained(folder).eval_pooler == expected


def test_weights_are_float32_unless_asked_otherwise(tiny_config, tmp_path):
    SentenceEncoder.from_config(tiny_config).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert {p.dtype for p in SentenceEncoder.from_pretrained(tmp_path / "half").parameters()} == {torch.float32}
    half = SentenceEncoder.from_pretrained(tmp_path / "half", dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert embedding(half).dtype == torch.bfloat16


@pytest.mark.parametrize("tie_mlm", [False, True])
def test_mlm_head_is_the_pretrained_one(tiny_config, tmp_path, tie_mlm):
    pretrained = BertForMaskedLM(tiny_config).eval()
    torch.nn.init.normal_(pretrained.cls.predictions.bias)
    pretrained.save_pretrained(tmp_path / "mlm")
    encoder = SentenceEncoder.from_pretrained(tmp_path / "mlm", pooler="avg", mlm=True, tie_mlm=tie_mlm).eval()
    with torch.no_grad():
        hidden = encoder.hidden_states(IDS, MASK)
        logits = encoder.mlm_head(hidden, encoder.backbone.get_input_embeddings().weight)
        torch.testing.assert_close(logits, pretrained(IDS, MASK).logits)
    if not tie_mlm:
        assert encoder.mlm_head.decoder.weight.data_ptr() != encoder.backbone.get_input_embeddings().weight.data_ptr()


def test_mlm_head_of_roberta_is_the_pretrained_one(tmp_path):
    config = RobertaConfig(
        vocab_size=70, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, type_vocab_size=1, pad_token_id=1,
    )  # fmt: skip
    pretrained = RobertaForMaskedLM(config).eval()
    pretrained.save_pretrained(tmp_path / "mlm")
    encoder = SentenceEncoder.from_pretrained(tmp_path / "mlm", pooler="avg", mlm=True).eval()
    with torch.no_grad():
        hidden = encoder.hidden_states(IDS.clamp(min=1), MASK)
        logits = encoder.mlm_head(hidden, encoder.backbone.get_input_embeddings().weight)
        torch.testing.assert_close(logits, pretrained(IDS.clamp(min=1), MASK).logits)


def test_weights_that_are_missing_or_misshapen_are_named(plain_folder):
    folder = plain_folder(pooler=True)
    weights = load_file(folder / "model.safetensors")
    gone = "encoder.layer.1.output.dense.weight"
    save_file({k: v for k, v in weights.items() if k != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"lacks 1 of the backbone's weights .first {gone}"):
        SentenceEncoder.from_pretrained(folder)
    save_file(weights | {gone: torch.zeros(3, 3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="whose weights cannot be loaded"):
        SentenceEncoder.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(InputError, match="whose weights cannot be loaded"):
        SentenceEncoder.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="whose weights cannot be loaded"):
        SentenceEncoder.from_pretrained(folder)


class Mischief:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_that_carry_code_are_refused_unread(plain_folder, tmp_path):
    folder = plain_folder(pooler=True)
    (folder / "model.safetensors").unlink()
    for write in (
        lambda data, file: torch.save(data, file),
        lambda data, file: file.write_bytes(pickle.dumps(data, protocol=2)),
    ):
        write({"embeddings.word_embeddings.weight": Mischief(tmp_path / "ran")}, folder / "pytorch_model.bin")
        with pytest.raises(InputError, match="holds more than tensors and was not read"):
            SentenceEncoder.from_pretrained(folder)
        assert not (tmp_path / "ran").exists()


def test_paths_that_lead_nowhere_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a folder without config\.json"):
        SentenceEncoder.from_pretrained(tmp_path / "empty")
    with pytest.raises(InputError, match=r"model is .*nowhere.*which cannot be read"):
        SentenceEncoder.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(InputError, match="model type is 't5'"):
        SentenceEncoder.from_pretrained(tmp_path / "empty")
    with pytest.raises(InputError, match="head is 'new', but must be one of load, random, none"):
        SentenceEncoder.from_pretrained(tmp_path / "empty", head="new")
