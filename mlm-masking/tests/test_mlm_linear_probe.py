"""Linear probes: features are the frozen layers', a task that is linear in them is found, the baselines are there."""

import json

import numpy as np
import pytest
import torch

from mlm_masking import glue
from mlm_masking.classification import prepare
from mlm_masking.encoders import load_model
from mlm_masking.linear_probe import baseline, layer_features, probe_encoder, probe_layer, random_twin
from shared import InputError

WORDS = ("the cat", "a dog", "a film", "the house", "the river", "long", "red", "late")


def write(path, count, seed):
    """Whether the sentence contains `red`: linear in the mean of the embeddings."""
    generator = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        chosen = [WORDS[index] for index in generator.integers(0, len(WORDS), 4)]
        lines.append(json.dumps({"sentence": " ".join(chosen), "label": int("red" in chosen)}))
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def prepared(checkpoint, tmp_path):
    train, dev = write(tmp_path / "train.jsonl", 200, 0), write(tmp_path / "dev.jsonl", 80, 1)
    return prepare(checkpoint, glue.load_task("sst2"), train=train, dev=dev)


@pytest.fixture
def model(checkpoint):
    return load_model(checkpoint, "none", device="cpu")


def test_features_are_the_hidden_states_of_each_layer(model, prepared):
    rows = prepared.train
    first, mean = (layer_features(model, rows, pooling, [0, 1, 2]) for pooling in ("first", "mean"))
    assert first.shape == mean.shape == (3, 200, 32)
    for row in (0, 57, 199):
        with torch.no_grad():
            output = model.eval()(
                input_ids=torch.from_numpy(rows[row].astype(np.int64))[None], output_hidden_states=True
            )
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        for layer, state in enumerate(states):
            np.testing.assert_allclose(first[layer, row], state[0, 0].numpy(), rtol=0, atol=1e-5)
            np.testing.assert_allclose(mean[layer, row], state[0].mean(0).numpy(), rtol=0, atol=1e-5)


def test_a_property_of_the_words_is_read_from_the_embeddings(model, prepared):
    found = probe_encoder(model, prepared, pooling="mean", layers=[0])
    majority = baseline(prepared)["dev"]["accuracy"]
    assert found["layers"]["0"]["dev"]["accuracy"] > 0.9 > majority
    assert found["best"] == {"layer": 0, "score": found["score"]}


def test_scores_are_probed_by_ridge_regression():
    task = glue.load_task("stsb")
    generator = np.random.default_rng(0)
    features = generator.normal(size=(120, 6)).astype(np.float32)
    labels = np.clip(2.5 + features @ generator.normal(size=6) * 0.3, 0, 5)
    result = probe_layer(task, features[:80], labels[:80], {"dev": (features[80:], labels[80:])}, seed=1)
    assert result["dev"]["spearman"] > 0.95


def test_a_random_twin_has_the_same_shape_and_other_weights(model):
    twin = random_twin(model, seed=3)
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    assert {name: p.shape for name, p in ours.items()} == {name: p.shape for name, p in theirs.items()}
    assert not torch.equal(ours["embeddings.word_embeddings.weight"], theirs["embeddings.word_embeddings.weight"])


def test_layers_and_poolings_that_are_not_there_are_refused(model, prepared):
    with pytest.raises(InputError, match="the model has layers 0"):
        layer_features(model, prepared.train, "mean", [3])
    with pytest.raises(InputError, match="pooling=max"):
        layer_features(model, prepared.train, "max", [0])
    with pytest.raises(InputError, match="too few to probe"):
        probe_layer(glue.load_task("sst2"), np.ones((3, 2)), np.zeros(3, dtype=int), {}, 1)


@pytest.mark.mirror
def test_the_command_probes_tasks_of_the_mirror(checkpoint, tmp_path, command):
    more = ("task.of=[sst2]", "task.size=60", "task.layers=[0,2]", f"output_dir={tmp_path}/out", "device=cpu")
    assert command("probe", "task=linear", f"ckpt={checkpoint}", *more) == (0, "")
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["tasks"]["sst2"]
    assert set(metrics["layers"]) == set(metrics["random"]["layers"]) == {"0", "2"}
    assert metrics["data"] in ("sst2_sentences", "glue_sst2") and "majority" in metrics
