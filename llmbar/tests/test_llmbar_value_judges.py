"""Judges that give each output a number: lengths, surface features, embeddings, reward models."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from llmbar.data import Instance
from llmbar.heuristics import longer, shorter
from llmbar.preference_model import FEATURES, PreferenceModel
from llmbar.reward_model import RewardModel
from llmbar.scores import compare, score
from shared import InputError, hub
from shared.generation.tiny_model import write_tiny_llama


def accuracy(values, instances) -> float:
    pairs = [compare(*pair) for pair in values]
    return score([a for a, _ in pairs], [b for _, b in pairs], [one.label for one in instances]).accuracy


def test_words_are_split_on_blanks_and_ties_count_half():
    one = Instance("x", 0, "q", "a  b\nc", "a b c", 1)
    assert longer([one]).tolist() == [[3.0, 3.0]]
    assert accuracy(longer([one]), [one]) == 50.0
    assert accuracy(shorter([one]), [one]) == 50.0


REFERENCE = {
    "LLMBar/Natural": 55.0, "LLMBar/Adversarial/Neighbor": 13.4, "LLMBar/Adversarial/GPTInst": 16.3,
    "LLMBar/Adversarial/GPTOut": 44.7, "LLMBar/Adversarial/Manual": 19.6, "CaseStudy/Constraint": 36.0,
    "CaseStudy/Negation": 29.7, "CaseStudy/Normal": 70.3, "CaseStudy/Base_9": 53.7, "CaseStudy/Base_10": 46.3,
    "Processed/FairEval": 57.6, "Processed/LLMEval^2": 56.2, "Processed/MT-Bench": 68.2,
}  # fmt: skip


@pytest.mark.mirror
def test_the_longer_output_is_right_as_often_as_known(released):
    measured = {name: round(accuracy(longer(some), some), 1) for name, some in released.items()}
    assert measured == REFERENCE
    for some in released.values():
        assert accuracy(shorter(some), some) == pytest.approx(100 - accuracy(longer(some), some))


@pytest.mark.mirror
def test_a_preference_model_learns_the_surface_and_fails_on_adversarial(released):
    pairs = [one for name, some in released.items() if name.startswith("Processed/") for one in some]
    model = PreferenceModel().fit(pairs)
    assert accuracy(model.values(pairs), pairs) == pytest.approx(69, abs=3)
    natural = released["LLMBar/Natural"]
    assert accuracy(model.values(natural), natural) == pytest.approx(58, abs=3)
    adversarial = [some for name, some in released.items() if "/Adversarial/" in name]
    assert np.mean([accuracy(model.values(some), some) for some in adversarial]) == pytest.approx(22, abs=3)


def test_a_preference_model_does_not_know_positions(house):
    natural = house["House/Natural"]
    swapped = [Instance(o.set, o.i, o.input, o.output_2, o.output_1, 3 - o.label) for o in natural]
    model, mirrored = PreferenceModel().fit(natural), PreferenceModel().fit(swapped)
    assert mirrored.weights == pytest.approx(model.weights)
    assert model.values(natural) == pytest.approx(mirrored.values(swapped)[:, ::-1])
    assert set(model.weights) == set(FEATURES)
    assert model.features(natural).shape == (20, 2, len(FEATURES))
    with pytest.raises(ValueError, match="at least two"):
        PreferenceModel().fit(natural[:1])


def test_the_embedding_judge_prefers_what_is_about_the_instruction():
    from llmbar.embedding import embedding_values

    on_topic = Instance("x", 0, "Name a fruit.", "A ripe red apple is a fruit.", "The stock market fell on Monday.", 1)
    long = Instance("x", 1, "Name a fruit.", "apple " * 400, "pear", 1)
    result = embedding_values([on_topic, long], hub.model_path("minilm", "llmbar"))
    assert result.values[0, 0] > result.values[0, 1] + 0.3
    assert (result.values.shape, result.texts, result.truncated) == ((2, 2), 5, 1)


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    """reward_folder(kind) -> a tiny random reward model: "chat" (Llama), "pair" (BERT), "three" labels, or "bare"."""

    def make(kind: str):
        folder = tmp_path_factory.mktemp(kind)
        write_tiny_llama(folder, ["some words to learn a vocabulary from"] * 3, vocabulary=300)
        if kind == "bare":
            return folder
        torch.manual_seed(0)
        if kind == "pair":
            config = BertConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                intermediate_size=64, max_position_embeddings=128, num_labels=1)  # fmt: skip
        else:
            config = LlamaConfig.from_pretrained(folder, num_labels=3 if kind == "three" else 1)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        return folder

    return make


def one_by_one(folder, text: str) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return float(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0])


def test_rewards_in_batches_equal_one_by_one_scores(reward_folder, house):
    folder = reward_folder("chat")
    model = RewardModel(str(folder), batch_size=7)
    instances = house["House/Natural"]
    values = model.values(instances)
    assert model.text_format == "chat"
    for one, pair in list(zip(instances, values, strict=True))[:3]:
        turns = [{"role": "user", "content": one.input}, {"role": "assistant", "content": one.output_2}]
        text = model.tokenizer.apply_chat_template(turns, tokenize=False)
        assert pair[1] == pytest.approx(one_by_one(folder, text), abs=1e-4)


def test_a_reward_model_without_a_chat_template_reads_pairs_and_alpaca(reward_folder, house):
    folder = reward_folder("pair")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    model = RewardModel(str(folder))
    assert model.text_format == "pair"
    with pytest.raises(InputError, match=r"has \d+ tokens, the model has 128 positions"):
        model.values(house["House/Adversarial/Neighbor"])
    with pytest.raises(InputError, match="no chat template; use alpaca"):
        RewardModel(str(folder), text_format="chat")


def test_a_head_with_several_labels_needs_a_rule(reward_folder, house):
    folder = str(reward_folder("three"))
    with pytest.raises(InputError, match=r"3 labels .* judge\.label"):
        RewardModel(folder)
    with pytest.raises(InputError, match="'nice' is none of its labels"):
        RewardModel(folder, label="nice")
    assert RewardModel(folder, label="LABEL_2").values(house["House/Natural"][:2]).shape == (2, 2)


def test_a_checkpoint_without_a_head_is_refused(reward_folder):
    with pytest.raises(InputError, match="no sequence classification head"):
        RewardModel(str(reward_folder("bare")))


def test_a_reward_that_is_not_a_number_is_refused_by_instance(reward_folder, house):
    model = RewardModel(str(reward_folder("chat")))
    with torch.no_grad():
        model.model.score.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"the reward of House/Natural\[0\] output_1 is nan"):
        model.values(house["House/Natural"][:2])
    with pytest.raises(InputError, match="text_format='loud'"):
        RewardModel("x", text_format="loud")
