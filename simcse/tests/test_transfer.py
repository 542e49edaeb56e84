"""Transfer: the batched classifier equals SentEval's sequential one, and reproduces its published check values."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold

from shared import InputError
from simcse.baselines import bag_of_words
from simcse.senteval import TRANSFER_TASKS, classifier, evaluate_transfer, sequential
from simcse.senteval.classifier import L2_VALUES, PROTOCOLS, Split, held_out
from simcse.senteval.transfer import TREC_LABELS

# Bag of words in 256 buckets, the authors' classifier on one CPU thread: (devacc, acc).
FAST = {
    "MR": (62.73, 62.81),
    "CR": (72.24, 69.46),
    "SUBJ": (79.01, 78.55),
    "MPQA": (72.18, 71.77),
    "SST2": (65.94, 64.09),
    "TREC": (65.44, 68.40),
    "MRPC": (72.74, 71.48),
}
TEST = {"CR": (72.50, 71.58), "TREC": (65.85, 68.20), "MRPC": (73.41, 71.88)}


def bag_of_256(sentences: list[str]) -> np.ndarray:
    return bag_of_words(sentences, buckets=256)


def blobs(num_classes: int, size: int, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping Gaussian classes, so that accuracies are neither 0 nor 1 and training goes on for a while."""
    rng = np.random.RandomState(3)
    labels = rng.randint(num_classes, size=size)
    centres = rng.standard_normal((num_classes, dim)) * 0.7
    features = centres[labels] + rng.standard_normal((size, dim))
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def small_senteval(tmp_path_factory) -> Path:
    """All seven tasks in the real layout, some 60 to 90 examples each, words that hint at the class."""
    folder = tmp_path_factory.mktemp("senteval")
    rng = np.random.RandomState(7)

    def sentence(label: int) -> str:
        own = [f"w{label}{i}" for i in range(5)]
        return " ".join(rng.choice([*own, *(f"x{i}" for i in range(15))], rng.randint(3, 9)))

    def write(name: str, lines: list[str]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    for positive, negative in (
        ("MR/rt-polarity.pos", "MR/rt-polarity.neg"),
        ("CR/custrev.pos", "CR/custrev.neg"),
        ("SUBJ/subj.objective", "SUBJ/subj.subjective"),
        ("MPQA/mpqa.pos", "MPQA/mpqa.neg"),
    ):
        write(positive, [sentence(1) for _ in range(33)])
        write(negative, [sentence(0) for _ in range(38)])
    for part, size in (("train", 90), ("dev", 40), ("test", 40)):
        write(f"SST/binary/sentiment-{part}", [f"{sentence(i % 2)}\t{i % 2}" for i in range(size)])
    for name, size in (("TREC/train_5500.label", 90), ("TREC/TREC_10.label", 36)):
        write(name, [f"{TREC_LABELS[i % 6]}:fine {sentence(i % 6)}" for i in range(size)])
    for part, size in (("train", 70), ("test", 40)):
        rows = [f"{i % 2}\t1\t2\t{sentence(0)}\t{sentence(i % 2)}" for i in range(size)]
        write(f"MRPC/msr_paraphrase_{part}.txt", ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows])
    return folder


@pytest.mark.parametrize("protocol", ["test", "fast"])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_batched_training_equals_sequential_training(protocol, num_classes):
    features, labels = blobs(num_classes, 203)  # 162 or 163 training rows: the folds differ in size and in permutations
    cut = StratifiedKFold(5, shuffle=True, random_state=0).split(features, labels)
    splits = [Split(train, dev) for train, dev in cut] + [held_out(np.arange(203)), held_out(np.arange(140))]
    l2 = np.tile(L2_VALUES, (len(splits), 1))
    batched = classifier.fit(features, labels, splits, l2, num_classes, PROTOCOLS[protocol])
    plain = sequential.fit(features, labels, splits, l2, num_classes, PROTOCOLS[protocol])
    assert len({len(split.train) for split in splits}) >= 3
    np.testing.assert_array_equal(batched.dev_accuracy, plain.dev_accuracy)
    torch.testing.assert_close(batched.weight, plain.weight, atol=2e-4, rtol=0)


def test_every_task_gives_the_same_numbers_batched_and_sequentially(small_senteval):
    batched = evaluate_transfer(bag_of_256, small_senteval, protocol="fast")
    assert batched == evaluate_transfer(bag_of_256, small_senteval, protocol="fast", fit=sequential.fit)
    assert list(batched) == list(TRANSFER_TASKS)
    assert set(batched["MRPC"]) == {"devacc", "acc", "f1", "ndev", "ntest"}
    assert (batched["MR"]["ntest"], batched["SST2"]["ndev"], batched["TREC"]["ntest"]) == (71, 40, 36)
    assert all(40 < entry["devacc"] <= 100 for entry in batched.values())


def test_the_ten_fold_protocol_gives_the_same_numbers_too(small_senteval):
    tasks = ["MRPC", "TREC"]
    batched = evaluate_transfer(bag_of_256, small_senteval, tasks, "test")
    assert batched == evaluate_transfer(bag_of_256, small_senteval, tasks, "test", fit=sequential.fit)


def test_stopping_counter_is_not_reset_by_an_improvement(monkeypatch):
    """Dev accuracies 1 2 2 3 3 4 4 ... (tenacity 1): the second miss stops, however good the rounds between were."""
    features, labels = blobs(2, 40)
    seen = iter([0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5])
    rounds = []

    def scripted(block):
        rounds.append(block.step_count)
        return np.full((1, 1), next(seen))

    monkeypatch.setattr(classifier._Block, "_dev_accuracy", scripted)
    protocol = classifier.Protocol(folds=2, optimizer="adam", batch_size=8, tenacity=1, epochs_per_round=1)
    split = Split(np.arange(32), np.arange(32, 40))
    fits = classifier.fit(features, labels, [split], np.array([[1e-3]]), 2, protocol)
    assert fits.dev_accuracy.item() == 0.3
    assert len(rounds) == 5


def test_training_ends_after_two_hundred_epochs(monkeypatch):
    features, labels = blobs(2, 16)
    rounds = []

    def always_better(block):
        rounds.append(1)
        return np.full((1, 1), len(rounds) / 1000)

    monkeypatch.setattr(classifier._Block, "_dev_accuracy", always_better)
    protocol = classifier.Protocol(folds=2, optimizer="rmsprop", batch_size=16, tenacity=1, epochs_per_round=4)
    classifier.fit(features, labels, [Split(np.arange(12), np.arange(12, 16))], np.array([[1e-3]]), 2, protocol)
    assert len(rounds) == 51  # after 200 epochs one more round begins, as in the protocol's `while epochs <= 200`


def test_callers_random_state_and_threads_are_left_alone(small_senteval):
    torch.manual_seed(5)
    np.random.seed(5)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads())
    evaluate_transfer(bag_of_256, small_senteval, ["MRPC"], "fast")
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
    assert before[2] == torch.get_num_threads()


def test_result_does_not_depend_on_the_number_of_threads(small_senteval):
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(evaluate_transfer(bag_of_256, small_senteval, ["CR"], "fast"))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]


def test_each_sentence_of_all_tasks_is_encoded_once(small_senteval):
    calls = []

    def encode(sentences: list[str]) -> np.ndarray:
        calls.append(sentences)
        return bag_of_256(sentences)

    evaluate_transfer(encode, small_senteval, ["MRPC", "SST2"], "fast")
    assert len(calls) == 1 and len(set(calls[0])) == len(calls[0])


def test_latin1_bytes_do_not_split_lines(small_senteval, tmp_path):
    """U+0085 is a line end for str.splitlines, and a blank for str.split; the file has one example."""
    for name in ("CR/custrev.pos", "CR/custrev.neg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((small_senteval / name).read_bytes() + b"caf\xc3\x85 one\xa0two\n")
    seen = []

    def encode(sentences: list[str]) -> np.ndarray:
        seen.extend(sentences)
        return bag_of_256(sentences)

    assert evaluate_transfer(encode, tmp_path, ["CR"], "fast")["CR"]["ntest"] == 73
    assert "cafÃ one two" in seen


def test_missing_files_are_listed_with_their_counts(tmp_path):
    with pytest.raises(InputError) as error:
        evaluate_transfer(bag_of_256, tmp_path, ["CR", "SST2"])
    assert "5 of 5 files are missing" in str(error.value)
    assert "SST/binary/sentiment-train (67,349 lines)" in str(error.value)


@pytest.mark.parametrize(
    ("name", "task", "line", "message"),
    [
        ("SST/binary/sentiment-dev", "SST2", "a film\t2", "line 41: 'a film.t2' is not 'sentence<TAB>0 or 1'"),
        ("SST/binary/sentiment-dev", "SST2", "a film", "line 41"),
        ("TREC/TREC_10.label", "TREC", "FOO:bar Who ?", "line 37: 'FOO:bar Who .' is not 'COARSE:fine question'"),
        ("MRPC/msr_paraphrase_test.txt", "MRPC", "1\tonly three\tcolumns", "line 42"),
    ],
)
def test_an_unreadable_line_is_named(small_senteval, tmp_path, name, task, line, message):
    for source in small_senteval.rglob("*"):
        if source.is_file():
            target = tmp_path / source.relative_to(small_senteval)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    path = tmp_path / name
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        evaluate_transfer(bag_of_256, tmp_path, [task], "fast")


def test_unknown_names_are_refused(small_senteval):
    with pytest.raises(InputError, match="STS12; known are MR"):
        evaluate_transfer(bag_of_256, small_senteval, ["STS12"])
    with pytest.raises(InputError, match="'slow' is not one of test, fast"):
        evaluate_transfer(bag_of_256, small_senteval, ["MR"], "slow")


@pytest.mark.mirror
@pytest.mark.parametrize("protocol", ["fast", "test"])
def test_published_check_values(mirror, protocol):
    """All seven tasks with 5 folds, three with 10 (the other four take minutes, see bench/transfer.py)."""
    expected = FAST if protocol == "fast" else TEST
    results = evaluate_transfer(bag_of_256, mirror / "simcse/SentEval/data/downstream", list(expected), protocol)
    measured = {task: (entry["devacc"], entry["acc"]) for task, entry in results.items()}
    for task, pair in expected.items():
        assert measured[task] == pytest.approx(pair, abs=0.3), (task, measured[task])
    assert results["MRPC"]["f1"] == pytest.approx(80.97 if protocol == "fast" else 80.81, abs=0.3)


@pytest.mark.gpu
def test_gpu_gives_the_numbers_of_the_cpu(small_senteval):
    cpu = evaluate_transfer(bag_of_256, small_senteval, protocol="fast")
    gpu = evaluate_transfer(bag_of_256, small_senteval, protocol="fast", device="cuda")
    for task in TRANSFER_TASKS:
        assert gpu[task]["devacc"] == pytest.approx(cpu[task]["devacc"], abs=0.3)
