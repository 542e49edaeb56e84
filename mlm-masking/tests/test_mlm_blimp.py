"""Pseudo-log-likelihoods against the definition, one forward pass per token; sharing of copies; BLiMP's accuracy."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from mlm_masking.blimp import (
    MaskedCopies,
    Paradigm,
    _tokens_that_follow,
    blimp_accuracy,
    pseudo_log_likelihoods,
    read_paradigms,
    score_paradigm,
)
from shared import InputError

SENTENCES = [
    "the cat sat on the mat .",
    "the dog sat on the mat .",
    "who is in the house ?",
    "a film",
    "the cat sat on the mat .",
]


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForMaskedLM.from_pretrained(checkpoint).eval()


def by_definition(model, tokenizer, sentence, within_word=False):
    """Mask one token at a time (and the rest of its word), a forward pass each, full logits."""
    ids = [0, *tokenizer(sentence, add_special_tokens=False)["input_ids"], 2]
    words = tokenizer.convert_ids_to_tokens(ids)
    total = 0.0
    for position in range(1, len(ids) - 1):
        masked = torch.tensor(ids)
        masked[position] = tokenizer.mask_token_id
        following = position + 1
        while within_word and following < len(ids) - 1 and not words[following].startswith("Ġ"):
            masked[following] = tokenizer.mask_token_id
            following += 1
        with torch.no_grad():
            logits = model(input_ids=masked[None]).logits[0, position]
        total += float(logits.log_softmax(-1)[ids[position]])
    return total


@pytest.mark.parametrize("variant", ["original", "within_word"])
@pytest.mark.parametrize("batch_tokens", [None, 1, 37])
def test_scores_are_those_of_the_definition(model, tokenizer, variant, batch_tokens):
    scores, _ = pseudo_log_likelihoods(model, tokenizer, SENTENCES, variant=variant, batch_tokens=batch_tokens)
    expected = [by_definition(model, tokenizer, sentence, variant == "within_word") for sentence in SENTENCES]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    assert scores[0] == scores[4]


def test_a_word_hides_the_tokens_that_follow_in_it():
    tokens = ["<s>", "hous", "es", "Ġare", "Ġexp", "ens", "ive", ".", "</s>"]
    assert _tokens_that_follow(tokens).tolist() == [0, 1, 0, 0, 3, 2, 1, 0, 0]


def test_copies_that_two_sentences_share_are_computed_once():
    good, bad = np.array([0, 10, 11, 12, 2]), np.array([0, 10, 99, 12, 2])
    copies = MaskedCopies([good, bad], mask=50)
    assert len(copies.copies) == 5 and len(copies.copy) == 6  # both sentences with the differing token masked are equal
    assert copies.shared == pytest.approx(1 / 6)
    shared = [copies.target[copies.copy == n].tolist() for n in range(5)]
    assert [11, 99] in shared


def test_the_head_is_run_on_one_position_of_each_copy(model, tokenizer):
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    _, copies = pseudo_log_likelihoods(model, tokenizer, SENTENCES)
    handle.remove()
    assert sum(shape[0] for shape in seen) == len(copies.copies) and all(len(shape) == 2 for shape in seen)


def test_accuracy_counts_strictly_better_pairs_and_ties_apart(model, tokenizer):
    pairs = Paradigm("p", "syntax", ["the cat sat", "a dog", "a film"], ["a dog ran", "the cat sat", "a film"])
    scores, _ = pseudo_log_likelihoods(model, tokenizer, [*pairs.good, *pairs.bad])
    result = score_paradigm(model, tokenizer, pairs)
    assert result["accuracy"] == pytest.approx(np.mean(scores[:3] > scores[3:])) and result["ties"] == 1
    both = blimp_accuracy(model, tokenizer, [pairs, Paradigm("q", "semantics", pairs.bad, pairs.good)])
    first, second = (both["paradigms"][name]["accuracy"] for name in "pq")
    assert both["accuracy"] == pytest.approx((first + second) / 2) and both["pairs"] == 6 and both["ties"] == 2
    assert both["fields"] == {"syntax": first, "semantics": second}


def test_a_model_that_was_taught_the_good_sentences_prefers_them(model, tokenizer, checkpoint):
    good, bad = (
        ["the cat sat on the mat .", "a dog ran in the park ."],
        ["cat the sat on mat the .", "dog a ran the park in ."],
    )
    taught = AutoModelForMaskedLM.from_pretrained(checkpoint)
    optimizer = torch.optim.AdamW(taught.parameters(), lr=3e-3)
    batch = tokenizer(good, return_tensors="pt", padding=True)
    for _ in range(60):
        masked = batch["input_ids"].clone()
        chosen = (torch.rand(masked.shape) < 0.3) & (masked > 3)
        masked[chosen] = tokenizer.mask_token_id
        labels = torch.where(chosen, batch["input_ids"], -100)
        if chosen.any():
            taught(input_ids=masked, attention_mask=batch["attention_mask"], labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert score_paradigm(taught, tokenizer, Paradigm("order", "syntax", good, bad))["accuracy"] == 1.0


# ----------------------------------------------------------------------------------------------------------- bad input


def test_sentences_that_cannot_be_scored_are_refused(model, tokenizer):
    for sentences, message in [
        ([], "no sentences"),
        (["the cat <mask> sat"], "contains the mask token"),
        (["the cat " * 60], "the model's positions hold 64"),
        ([" "], "has no tokens"),
    ]:
        with pytest.raises(InputError, match=message):
            pseudo_log_likelihoods(model, tokenizer, sentences)
    with pytest.raises(InputError, match="variant=left"):
        pseudo_log_likelihoods(model, tokenizer, ["a"], variant="left")


def write_paradigm(folder, name, pairs, field="syntax"):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"sentence_good": good, "sentence_bad": bad, "field": field}) for good, bad in pairs]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def test_paradigms_are_read_by_name_and_malformed_ones_refused(tmp_path):
    folder = tmp_path / "blimp"
    write_paradigm(folder, "one", [("a", "b"), ("c", "d")])
    write_paradigm(folder, "two", [("e", "f")], "semantics")
    assert [(p.name, len(p), p.field) for p in read_paradigms(folder)] == [
        ("one", 2, "syntax"),
        ("two", 1, "semantics"),
    ]
    assert len(read_paradigms(folder, ["one"], limit=1)[0]) == 1
    with pytest.raises(InputError, match="there is no three; there are one, two"):
        read_paradigms(folder, ["three"])
    (folder / "bad.jsonl").write_text('{"sentence_good": "x"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl, line 1"):
        read_paradigms(folder)
    with pytest.raises(InputError, match=r"no \*\.jsonl"):
        read_paradigms(tmp_path / "nothing")


# ---------------------------------------------------------------------------------------------------------- entrypoint


def test_the_command_scores_a_paradigm_once_and_refuses_another_runs(tmp_path, checkpoint, make_checkpoint, command):
    write_paradigm(tmp_path / "blimp", "order", [("the cat sat .", "cat the sat ."), ("a dog ran .", "dog a ran .")])
    common = ("task=blimp", f"task.folder={tmp_path}/blimp", f"output_dir={tmp_path}/out")
    common += ("progress=false",)
    assert command("probe", *common, f"ckpt={checkpoint}") == (0, "")
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    part = tmp_path / "out" / "paradigms" / "order.json"
    stored = json.loads(part.read_text())
    assert metrics["paradigms"]["order"] == stored["result"]["accuracy"] and metrics["pairs"] == 2
    stored["result"]["accuracy"] = 0.123
    part.write_text(json.dumps(stored))
    assert command("probe", *common, f"ckpt={checkpoint}") == (0, "")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["accuracy"] == 0.123
    status, error = command("probe", *common, f"ckpt={make_checkpoint(seed=5)}")
    assert status == 2 and "is of a run with another model" in error


def test_tasks_of_the_other_program_are_refused(checkpoint, command):
    status, error = command("probe", "task=rte", f"ckpt={checkpoint}")
    assert status == 2 and "probe takes task=blimp or task=linear" in error


@pytest.mark.mirror
def test_the_mirrors_paradigms_have_a_thousand_pairs_each(mirror):
    paradigms = read_paradigms(mirror / "mlm-masking" / "blimp")
    assert len(paradigms) == 12 and {len(paradigm) for paradigm in paradigms} == {1000}
