"""Conversion: logits of the converted model against an independent forward pass written from the paper's description.

`reference_logits` works on fairseq's names alone: embeddings with their LayerNorm, pre-LayerNorm layers, a final
LayerNorm, the tied head. It shares no code with the converter or with transformers.
"""

import argparse
import json
import math
import pickle

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, RobertaForMaskedLM

from mlm_masking.convert import convert
from mlm_masking.encoders import load_model
from mlm_masking.layouts import DEEPSPEED, detect_layout, unpack_deepspeed
from mlm_masking.weight_files import fingerprint, read_tensors
from shared import InputError

VOCABULARY, WIDTH, HEADS, INNER, LAYERS, POSITIONS = 50, 32, 4, 48, 2, 20
ROOT = "encoder.sentence_encoder."


def fairseq_state(norm="pre", seed=0):
    """Random weights under the training framework's names, the head's matrix tied to the embedding."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    def layer_norm(name):
        return {f"{name}.weight": 1 + weight(WIDTH), f"{name}.bias": weight(WIDTH)}

    def linear(name, outputs, inputs):
        return {f"{name}.weight": weight(outputs, inputs), f"{name}.bias": weight(outputs)}

    state = {
        f"{ROOT}embed_tokens.weight": weight(VOCABULARY, WIDTH),
        f"{ROOT}embed_positions.weight": weight(POSITIONS, WIDTH),
        **layer_norm(f"{ROOT}layernorm_embedding"),
    }
    for index in range(LAYERS):
        layer = f"{ROOT}layers.{index}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= linear(f"{layer}self_attn.{name}", WIDTH, WIDTH)
        state |= layer_norm(f"{layer}self_attn_layer_norm") | layer_norm(f"{layer}final_layer_norm")
        state |= linear(f"{layer}fc1", INNER, WIDTH) | linear(f"{layer}fc2", WIDTH, INNER)
    if norm == "pre":
        state |= layer_norm(f"{ROOT}layer_norm")
    state |= linear("encoder.lm_head.dense", WIDTH, WIDTH) | layer_norm("encoder.lm_head.layer_norm")
    state |= {"encoder.lm_head.bias": weight(VOCABULARY)}
    state["encoder.lm_head.weight"] = state[f"{ROOT}embed_tokens.weight"]
    return state


def reference_logits(state, ids, norm="pre"):
    """(tokens,) ids without padding -> (tokens, vocabulary) logits, one head at a time."""

    def normalised(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def attention(x, layer):
        queries, keys, values = (linear(x, f"{layer}self_attn.{name}_proj") for name in "qkv")
        size, parts = WIDTH // HEADS, []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = queries[:, part] @ keys[:, part].T / math.sqrt(size)
            parts.append(torch.softmax(scores, -1) @ values[:, part])
        return linear(torch.cat(parts, -1), f"{layer}self_attn.out_proj")

    def feed_forward(x, layer):
        return linear(gelu(linear(x, f"{layer}fc1")), f"{layer}fc2")

    x = state[f"{ROOT}embed_tokens.weight"][ids] + state[f"{ROOT}embed_positions.weight"][2 + torch.arange(len(ids))]
    x = normalised(x, f"{ROOT}layernorm_embedding")
    for index in range(LAYERS):
        layer = f"{ROOT}layers.{index}."
        if norm == "pre":
            x = x + attention(normalised(x, f"{layer}self_attn_layer_norm"), layer)
            x = x + feed_forward(normalised(x, f"{layer}final_layer_norm"), layer)
        else:
            x = normalised(x + attention(x, layer), f"{layer}self_attn_layer_norm")
            x = normalised(x + feed_forward(x, layer), f"{layer}final_layer_norm")
    x = normalised(x, f"{ROOT}layer_norm") if norm == "pre" else x
    x = normalised(gelu(linear(x, "encoder.lm_head.dense")), "encoder.lm_head.layer_norm")
    return x @ state[f"{ROOT}embed_tokens.weight"].T + state["encoder.lm_head.bias"]


def packed(state):
    """The same weights in DeepSpeed's layers."""
    layers = {name: tensor for name, tensor in state.items() if ".layers." not in name}
    for index in range(LAYERS):
        layer = f"{ROOT}layers.{index}."
        for leaf, parts in DEEPSPEED.items():
            layers[f"{layer}{leaf}"] = torch.cat([state[f"{layer}{part}"] for part in parts])
    return layers


def published(model):
    """transformers' weights as the published repositories name them: `roberta.`, and a LayerNorm nobody uses."""
    state = {name.replace("roberta_prelayernorm.", "roberta."): t.clone() for name, t in model.state_dict().items()}
    for index in range(LAYERS):
        for parameter in ("weight", "bias"):
            state[f"roberta.encoder.layer.{index}.attention.self.LayerNorm.{parameter}"] = torch.randn(WIDTH)
    return state


IDS = torch.tensor([0, 7, 33, 49, 12, 5, 41, 8, 2])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_converted_training_checkpoint_computes_the_papers_model(norm):
    state = fairseq_state(norm)
    conversion = convert({**state, f"{ROOT}version": torch.ones(1)}, heads=HEADS)
    assert (conversion.layout, conversion.norm, conversion.dropped) == ("fairseq", norm, [f"{ROOT}version"])
    with torch.no_grad():
        logits = conversion.model(input_ids=IDS[None]).logits[0]
    expected = reference_logits(state, IDS, norm)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.5  # the comparison is of something
    assert conversion.model.config.model_type == {"pre": "roberta-prelayernorm", "post": "roberta"}[norm]


def test_padding_does_not_change_the_converted_models_logits():
    model = convert(fairseq_state(), heads=HEADS).model
    padded = torch.cat([IDS, torch.ones(4, dtype=torch.long)])[None]
    with torch.no_grad():
        logits = model(input_ids=padded, attention_mask=(padded != 1).long()).logits[0, : len(IDS)]
    torch.testing.assert_close(logits, reference_logits(fairseq_state(), IDS), rtol=1e-4, atol=1e-4)


def test_fused_layers_are_unpacked_into_the_same_model():
    state = fairseq_state()
    fused = packed(state)
    conversion = convert(fused, heads=HEADS)
    assert conversion.layout == "deepspeed"
    with torch.no_grad():
        logits = conversion.model(input_ids=IDS[None]).logits[0]
    torch.testing.assert_close(logits, reference_logits(state, IDS), rtol=1e-4, atol=1e-4)
    unpacked = unpack_deepspeed(fused)
    assert all(torch.equal(unpacked[name], tensor) for name, tensor in state.items())


def test_the_published_layout_loses_its_dead_layer_norm_and_nothing_else():
    model = convert(fairseq_state(), heads=HEADS).model
    conversion = convert(published(model), heads=HEADS)
    assert conversion.layout == "princeton_hf" and len(conversion.dropped) == 2 * LAYERS
    assert all(".attention.self.LayerNorm." in name for name in conversion.dropped)
    with torch.no_grad():
        logits = conversion.model(input_ids=IDS[None]).logits[0]
    torch.testing.assert_close(logits, reference_logits(fairseq_state(), IDS), rtol=1e-4, atol=1e-4)


def test_half_precision_checkpoints_become_single_precision():
    conversion = convert({name: tensor.half() for name, tensor in fairseq_state().items()}, heads=HEADS)
    assert {tensor.dtype for tensor in conversion.model.state_dict().values()} == {torch.float32}


def test_heads_come_from_the_options_or_the_papers_widths():
    state = fairseq_state()
    assert convert(state, options={"encoder_attention_heads": 8}).model.config.num_attention_heads == 8
    with pytest.raises(InputError, match="attention heads of a model of width 32 are not known"):
        convert(state)
    with pytest.raises(InputError, match="heads=5 does not divide the width 32"):
        convert(state, heads=5)


# -------------------------------------------------------------------------------------------------- wrong model types


def save_published(folder, model_type="roberta"):
    """A folder as the published repositories are: pre-LayerNorm weights under the post-LayerNorm type."""
    from safetensors.torch import save_file

    model = convert(fairseq_state(), heads=HEADS).model
    folder.mkdir()
    state = {name: tensor.contiguous() for name, tensor in published(model).items() if "decoder" not in name}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"model_type": model_type, "architectures": ["RobertaForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def test_the_stock_class_reads_a_published_checkpoint_without_an_error_and_gets_another_model(tmp_path):
    model = save_published(tmp_path / "published")
    stock = RobertaForMaskedLM.from_pretrained(tmp_path / "published").eval()
    with torch.no_grad():
        difference = (stock(input_ids=IDS[None]).logits - model(input_ids=IDS[None]).logits).abs().max()
    assert difference > 0.1


@pytest.mark.parametrize("head", ["classification", "masked_lm", "question_answering", "none"])
def test_a_published_checkpoint_is_refused_until_it_is_converted(tmp_path, head):
    save_published(tmp_path / "published")
    with pytest.raises(
        InputError, match=r"model_type 'roberta' \(post-LayerNorm\).*pre-LayerNorm.*mlm_masking\.convert"
    ):
        load_model(tmp_path / "published", head, outputs=2)


def test_post_layer_norm_weights_under_the_pre_layer_norm_type_are_refused(make_checkpoint):
    folder = make_checkpoint("post")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "roberta-prelayernorm"}))
    with pytest.raises(InputError, match=r"should say 'roberta'"):
        load_model(folder, "masked_lm")


def test_layouts_are_told_apart_by_their_names(make_checkpoint):
    assert detect_layout(fairseq_state()) == "fairseq"
    assert detect_layout(packed(fairseq_state())) == "deepspeed"
    for norm in ("pre", "post"):
        assert detect_layout(load_file(make_checkpoint(norm) / "model.safetensors")) == "hf"
    with pytest.raises(InputError, match="follow none of the layouts"):
        detect_layout({"bert.encoder.layer.0.output.dense.weight": torch.zeros(1)})


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{ROOT}embed_tokens.weight"), "no embed_tokens.weight"),
        (
            lambda s: s.pop(f"{ROOT}layers.1.fc2.bias"),
            r"lacks roberta_prelayernorm\..*layer\.1\.output\.dense\.bias",
        ),
        (lambda s: s.update({f"{ROOT}layers.0.moe.weight": torch.ones(2)}), "has no place"),
        (lambda s: s.update({"encoder.lm_head.weight": torch.ones(VOCABULARY, WIDTH)}), "untied head"),
        (lambda s: s.update({f"{ROOT}layers.0.fc1.weight": torch.ones(3, WIDTH)}), "shapes do not fit"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(change, message):
    state = fairseq_state()
    change(state)
    with pytest.raises(InputError, match=message):
        convert(state, heads=HEADS)


def test_a_wrong_layout_is_named_with_the_right_one(make_checkpoint):
    with pytest.raises(InputError, match="say from=fairseq"):
        convert(fairseq_state(), "deepspeed", heads=HEADS)
    with pytest.raises(InputError, match="give one of fairseq, deepspeed, princeton_hf"):
        convert(fairseq_state(), "megatron", heads=HEADS)
    with pytest.raises(InputError, match="nothing to convert"):
        convert(load_file(make_checkpoint() / "model.safetensors"))


def test_uneven_blocks_of_a_fused_layer_are_refused():
    with pytest.raises(InputError, match="not three equal blocks"):
        unpack_deepspeed({"layers.0.attn_qkvw": torch.ones(7, 2)})


class Harmful:
    """What a pickle may not do: call a function when it is read."""

    def __reduce__(self):
        return (print, ("run by a pickle",))


def test_a_pickle_with_anything_but_tensors_and_options_is_not_read(tmp_path, capsys):
    torch.save({"model": {"w": torch.ones(1)}, "extra": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(InputError, match="holds more than tensors"):
        read_tensors(tmp_path / "harmful.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(InputError):
        read_tensors(tmp_path / "plain.pt")
    assert "run by a pickle" not in capsys.readouterr().out


def test_the_options_of_a_training_checkpoint_are_read(tmp_path):
    options = argparse.Namespace(arch="roberta_large", encoder_attention_heads=4)
    torch.save({"model": fairseq_state(), "args": None, "cfg": {"model": options}}, tmp_path / "c.pt")
    tensors, found = read_tensors(tmp_path / "c.pt")
    assert (
        found["encoder_attention_heads"] == 4 and convert(tensors, options=found).model.config.num_attention_heads == 4
    )


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04cut")
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in {
        "cut.pt": "cannot be read",
        "cut.safetensors": "safetensors",
        "list.pt": "no tensors",
    }.items():
        with pytest.raises(InputError, match=message):
            read_tensors(tmp_path / name)
    with pytest.raises(InputError, match="no weights; expected"):
        read_tensors(tmp_path)


def test_another_model_has_another_fingerprint(make_checkpoint):
    first, same, other = make_checkpoint(seed=0), make_checkpoint(seed=0), make_checkpoint(seed=1)
    assert fingerprint(first) == fingerprint(same) != fingerprint(other)


# ---------------------------------------------------------------------------------------------------------- entrypoint


def test_the_command_writes_a_model_that_transformers_loads(tmp_path, tokenizer_folder, command):
    torch.save({"model": fairseq_state()}, tmp_path / "large.pt")
    common = ("convert", f"path={tmp_path}/large.pt", f"heads={HEADS}")
    assert command(*common, f"output_dir={tmp_path}/out") == (0, "")
    written = sorted(path.name for path in (tmp_path / "out" / "large").iterdir())
    assert written == ["config.json", "model.safetensors"]
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "large").eval()
    assert type(model).__name__ == "RobertaPreLayerNormForMaskedLM"
    with torch.no_grad():
        logits = model(input_ids=IDS[None]).logits[0]
    torch.testing.assert_close(logits, reference_logits(fairseq_state(), IDS), rtol=1e-4, atol=1e-4)
    status, error = command(*common, f"output_dir={tmp_path}/bad", f"tokenizer={tokenizer_folder}")
    assert status == 2 and "the dictionary does not belong to it" in error
    assert not (tmp_path / "bad" / "large").exists()


def test_the_command_converts_a_published_model_in_place_of_the_refused_one(tmp_path, command):
    model = save_published(tmp_path / "published")
    assert command("convert", f"path={tmp_path}/published", f"heads={HEADS}", f"output_dir={tmp_path}/out") == (0, "")
    loaded = load_model(tmp_path / "out" / "published", "masked_lm", device="cpu").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS[None]).logits, model(input_ids=IDS[None]).logits)
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert metrics["layout"] == "princeton_hf" and metrics["model_type"] == "roberta-prelayernorm"
