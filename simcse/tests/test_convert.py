"""Checkpoints as the authors' training code wrote them: read without converting, and converted by the entrypoint."""

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, BertModel, RobertaConfig, RobertaModel

from shared import InputError
from simcse.convert import main, read_checkpoint
from simcse.model import ContrastiveModel, SentenceEncoder

IDS = torch.tensor([[2, 40, 50, 60, 3, 1], [2, 41, 51, 3, 1, 1]])
MASK = (IDS != 1).long()


@pytest.fixture
def released_checkpoint(tiny_config, tiny_tokenizer, tmp_path):
    """A function: a folder as `BertForCL.save_pretrained` of transformers 4.2 left it, the model, and its tensors."""

    def write(name="my-sup-model", prefix="bert", head=True, mlm=False, zipped=True):
        if prefix == "bert":
            model = BertModel(tiny_config, add_pooling_layer=False)
        else:
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
            config = RobertaConfig(
                vocab_size=len(tiny_tokenizer), max_position_embeddings=40, type_vocab_size=1, **sizes
            )
            model = RobertaModel(config, add_pooling_layer=False)
        state = {f"{prefix}.{key}": value for key, value in model.state_dict().items()}
        positions = torch.arange(model.config.max_position_embeddings)
        state[f"{prefix}.embeddings.position_ids"] = positions.unsqueeze(0)  # a buffer then, gone since
        if head:
            state |= {"mlp.dense.weight": torch.randn(32, 32), "mlp.dense.bias": torch.randn(32)}
        if mlm:
            vocabulary = len(tiny_tokenizer)
            transform = "lm_head.transform." if prefix == "bert" else "lm_head."
            norm = "LayerNorm" if prefix == "bert" else "layer_norm"
            state |= {
                "lm_head.bias": torch.randn(vocabulary),
                "lm_head.decoder.weight": torch.randn(vocabulary, 32),
                "lm_head.decoder.bias": torch.randn(vocabulary),
                f"{transform}dense.weight": torch.randn(32, 32),
                f"{transform}dense.bias": torch.randn(32),
                f"{transform}{norm}.weight": torch.randn(32),
                f"{transform}{norm}.bias": torch.randn(32),
            }
        folder = tmp_path / name
        model.config.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = [f"{type(model).__name__.removesuffix('Model')}ForCL"]
        (folder / "config.json").write_text(json.dumps(config))
        tiny_tokenizer.save_pretrained(folder)
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return folder, model.eval(), state

    return write


@pytest.mark.parametrize("prefix", ["bert", "roberta"])
@pytest.mark.parametrize("zipped", [True, False])
def test_unconverted_checkpoint_is_read_with_its_head(released_checkpoint, prefix, zipped):
    folder, model, state = released_checkpoint(prefix=prefix, zipped=zipped)
    encoder = SentenceEncoder.from_pretrained(folder).eval()
    hidden = model(IDS, MASK).last_hidden_state[:, 0]
    expected = torch.tanh(hidden @ state["mlp.dense.weight"].T + state["mlp.dense.bias"])
    assert encoder.eval_pooler == "cls"
    torch.testing.assert_close(encoder.embed(IDS, MASK), expected)


@pytest.mark.parametrize("prefix", ["bert", "roberta"])
def test_unconverted_mlm_head_is_read(released_checkpoint, prefix):
    folder, _, state = released_checkpoint(prefix=prefix, mlm=True)
    head = SentenceEncoder.from_pretrained(folder, mlm=True).mlm_head
    transform = "lm_head.transform." if prefix == "bert" else "lm_head."
    assert torch.equal(head.decoder.weight, state["lm_head.decoder.weight"])
    assert torch.equal(head.decoder.bias, state["lm_head.decoder.bias"])
    assert torch.equal(head.dense.weight, state[f"{transform}dense.weight"])


@pytest.mark.parametrize("prefix", ["bert", "roberta"])
@pytest.mark.parametrize("mlm", [True, False])
def test_converted_folder_is_plain_and_gives_the_same_embeddings(released_checkpoint, tmp_path, prefix, mlm):
    folder, _, _ = released_checkpoint(prefix=prefix, mlm=mlm)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.released_format
    checkpoint.save(tmp_path / "plain")
    model, report = AutoModel.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert (report["missing_keys"], report["unexpected_keys"]) == (set(), set())
    pooled = model.eval()(IDS, MASK).pooler_output
    torch.testing.assert_close(pooled, SentenceEncoder.from_pretrained(folder).eval().embed(IDS, MASK))
    assert not read_checkpoint(tmp_path / "plain").released_format
    assert (tmp_path / "plain" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("my-unsup-model", None, "cls_before_pooler"),
        ("my-sup-model", None, "cls"),
        ("my-sup-model", "cls_before_pooler", "cls_before_pooler"),
        ("my-unsup-model", "cls", "cls"),
    ],
)
def test_converted_folder_knows_its_evaluation_pooler_and_keeps_its_head(
    released_checkpoint, tmp_path, name, asked, expected
):
    read_checkpoint(released_checkpoint(name)[0], asked).save(tmp_path / "plain")
    encoder = SentenceEncoder.from_pretrained(tmp_path / "plain")
    assert encoder.eval_pooler == expected
    assert encoder.head is not None


def test_checkpoint_trained_without_a_head_needs_its_pooler_named(released_checkpoint):
    folder, _, _ = released_checkpoint(head=False)
    with pytest.raises(InputError, match="has no pooler weights"):
        read_checkpoint(folder)
    assert read_checkpoint(folder, "avg").encoder.eval_pooler == "avg"


def test_unconverted_checkpoint_can_be_trained_on(released_checkpoint):
    encoder = SentenceEncoder.from_pretrained(released_checkpoint(mlm=True)[0], mlm=True)
    ids = IDS.unsqueeze(1).repeat(1, 2, 1)
    model = ContrastiveModel(encoder, mlm_weight=0.1).train()
    model(ids, (ids != 1).long(), mlm_input_ids=ids, mlm_labels=ids)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_entrypoint_writes_the_folder_and_its_result(released_checkpoint, tmp_path):
    folder, _, _ = released_checkpoint("my-unsup-model")
    command = [sys.executable, "-m", "simcse.convert", f"path={folder}", f"output_dir={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metrics"]["released_format"] is True
    assert result["metrics"]["eval_pooler"] == "cls_before_pooler"
    assert SentenceEncoder.from_pretrained(tmp_path / "out").eval_pooler == "cls_before_pooler"


def test_entrypoint_refuses_in_one_message_and_writes_nothing(released_checkpoint, tmp_path, monkeypatch, capsys):
    folder, _, _ = released_checkpoint(head=False)
    for output, message in (
        (tmp_path / "out", "has no pooler weights"),
        (folder, "output_dir is .*the checkpoint itself"),
    ):
        monkeypatch.setattr(sys, "argv", ["convert", f"path={folder}", f"output_dir={output}"])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert not (folder / "model.safetensors").exists()
