"""STS: published check values, one encoding per sentence, averages, and everything that can be wrong with the files."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from shared import InputError
from simcse.baselines import bag_of_words, random_vectors
from simcse.senteval import STS_TASKS, evaluate_pairs, evaluate_sts, load_sts
from simcse.senteval.sts import SUBSETS, Pairs, cosine, percent, rounded_average, spearman

# Encoder A counts lower-cased tokens in 4,096 buckets, encoder B averages fixed Gaussian vectors, 300 numbers a token.
REFERENCE_A = {
    "all": [0.351366, 0.474773, 0.466224, 0.626709, 0.526975, 0.454422, 0.531162],
    "mean": [0.468206, 0.390116, 0.554543, 0.595225, 0.552140],
    "wmean": [0.465753, 0.473808, 0.563176, 0.617944, 0.563736],
}
REFERENCE_B = [0.351025, 0.478713, 0.469490, 0.624304, 0.523730, 0.444703, 0.527796]
SCORED = [3108, 1500, 3750, 3000, 1186, 1379, 4927]
# Characters of first and second sentences in the hub's mteb/sts12-sts ... sts16-sts, which hold the same text.
CHARACTERS = {
    "STS12": (198256, 203862),
    "STS13": (93101, 68848),
    "STS14": (212331 - 1, 194854),  # one sentence ends in a blank, which normalising removes
    "STS15": (173466, 172976),
    "STS16": (77704, 77098),
}


@pytest.fixture
def senteval(mirror: Path) -> Path:
    return mirror / "simcse/SentEval/data/downstream"


@pytest.fixture
def sts13(tmp_path: Path) -> Path:
    """A small STS13 in the real layout; one line of OnWN has no score."""
    folder = tmp_path / "STS" / "STS13-en-test"
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for subset, size in {"FNWN": 6, "headlines": 9, "OnWN": 12}.items():
        words = np.array(["red", "green", "blue", "dog", "cat", "bird", "runs", "eats", "sleeps"])
        texts = [[" ".join(rng.choice(words, 5)) for _ in range(2)] for _ in range(size)]
        (folder / f"STS.input.{subset}.txt").write_text("".join("\t".join(pair) + "\n" for pair in texts))
        scores = [f"{x:.1f}" for x in rng.uniform(0, 5, size)]
        if subset == "OnWN":
            scores[4] = ""
        (folder / f"STS.gs.{subset}.txt").write_text("".join(f"{score}\n" for score in scores))
    return tmp_path


class Recording:
    """An encoder that remembers what it was asked."""

    def __init__(self, encode=random_vectors):
        self.encode, self.calls = encode, []

    def __call__(self, sentences: list[str]) -> np.ndarray:
        self.calls.append(sentences)
        return self.encode(sentences)


@pytest.mark.mirror
def test_reference_values_of_the_bag_of_words(senteval):
    results = evaluate_sts(bag_of_words, senteval)
    for measure, expected in REFERENCE_A.items():
        measured = [results[task][measure] for task in STS_TASKS[: len(expected)]]
        np.testing.assert_allclose(measured, expected, atol=5e-4, err_msg=measure)
    assert [results[task]["n"] for task in STS_TASKS] == SCORED
    assert {task: {name: s["n"] for name, s in results[task]["subsets"].items()} for task in SUBSETS} == SUBSETS


@pytest.mark.mirror
def test_reference_values_of_random_vectors_with_every_sentence_encoded_once(senteval):
    encode = Recording()
    results = evaluate_sts(encode, senteval)
    measured = [results[task]["all"] for task in STS_TASKS]
    np.testing.assert_allclose(measured, REFERENCE_B, atol=1e-5)
    assert rounded_average([100 * value for value in measured]) == 48.85
    (sentences,) = encode.calls
    assert len(sentences) == len(set(sentences)) == 26_083


@pytest.mark.mirror
def test_dev_reference_values(senteval):
    encode = Recording()
    results = evaluate_sts(encode, senteval, ["STSBenchmark", "SICKRelatedness"], split="dev")
    assert results["STSBenchmark"]["all"] == pytest.approx(0.559822, abs=1e-5)
    assert results["SICKRelatedness"]["all"] == pytest.approx(0.560305, abs=1e-5)
    (sentences,) = encode.calls
    assert len(sentences) == len(set(sentences)) == 3_833


@pytest.mark.mirror
def test_text_is_that_of_the_hub_copies(senteval):
    loaded = load_sts(senteval, list(CHARACTERS))
    for task, expected in CHARACTERS.items():
        sides = zip(*((pairs.first, pairs.second) for pairs in loaded[task].values()), strict=True)
        assert tuple(sum(len(text) for part in side for text in part) for side in sides) == expected


def test_sets_are_averaged_plainly_by_size_and_together(sts13):
    result = evaluate_sts(random_vectors, sts13, ["STS13"])["STS13"]
    subsets = result["subsets"]
    assert {name: s["n"] for name, s in subsets.items()} == {"FNWN": 6, "headlines": 9, "OnWN": 11}
    values = [s["spearman"] for s in subsets.values()]
    assert result["mean"] == pytest.approx(np.mean(values))
    assert result["wmean"] == pytest.approx(np.dot(values, [6, 9, 11]) / 26)
    first, second, gold = zip(
        *((p.first, p.second, p.gold) for p in load_sts(sts13, ["STS13"])["STS13"].values()), strict=True
    )
    together = Pairs(list(chain(*first)), list(chain(*second)), np.concatenate(gold))
    assert result["all"] == pytest.approx(evaluate_pairs(random_vectors, together)["all"], abs=1e-12)
    assert result["n"] == 26


def test_dev_reads_no_file_of_another_split(dev_folder, tmp_path):
    """The folder's test and training files are unreadable; the dev scores do not notice."""
    for name in ("STS/STSBenchmark/sts-dev.csv", "SICK/SICK_trial.txt"):
        target = tmp_path / name
        target.parent.mkdir(parents=True)
        target.write_bytes((dev_folder / name).read_bytes())
    for name in ("STS/STSBenchmark/sts-test.csv", "STS/STSBenchmark/sts-train.csv", "SICK/SICK_test_annotated.txt"):
        (tmp_path / name).write_bytes(b"\xff\xfe not a table")
    tasks = ["STSBenchmark", "SICKRelatedness"]
    assert evaluate_sts(bag_of_words, tmp_path, tasks, split="dev") == evaluate_sts(
        bag_of_words, dev_folder, tasks, split="dev"
    )
    with pytest.raises(InputError, match=r"sts-test.csv, line 1: not utf-8"):
        evaluate_sts(bag_of_words, tmp_path, ["STSBenchmark"])


def test_missing_files_are_listed_with_their_counts(sts13):
    (sts13 / "STS/STS13-en-test/STS.gs.OnWN.txt").unlink()
    with pytest.raises(InputError) as error:
        evaluate_sts(bag_of_words, sts13, ["STS13", "SICKRelatedness"])
    assert "2 of 7 files are missing" in str(error.value)
    assert "STS/STS13-en-test/STS.gs.OnWN.txt (561 scored pairs)" in str(error.value)
    assert "SICK/SICK_test_annotated.txt (4,927 scored pairs)" in str(error.value)
    with pytest.raises(InputError, match="no folder"):
        evaluate_sts(bag_of_words, sts13 / "nowhere")


def test_an_incomplete_archive_is_scored_but_said_to_be_incomplete(sts13, caplog):
    evaluate_sts(bag_of_words, sts13, ["STS13"])
    assert "STS.gs.FNWN.txt: 6 scored pairs, the original has 189" in caplog.text


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("STS.gs.FNWN.txt", None, "1.0\n2.0\n", "has 6 lines but .* has 2"),
        ("STS.gs.FNWN.txt", None, "1\n2\n3\nfour\n5\n6\n", "line 4: gold score 'four' is not a number"),
        ("STS.gs.FNWN.txt", None, "1\n2\n3\nnan\n5\n6\n", "line 4: gold score 'nan' is not a number"),
        ("STS.gs.FNWN.txt", None, "\n" * 6, "no scored pair in it; the original has 189"),
        ("STS.input.FNWN.txt", "\t", " ", "line 1: .* is not two sentences"),
    ],
)
def test_unusable_files_are_named_with_the_line(sts13, file, old, new, message):
    path = sts13 / "STS/STS13-en-test" / file
    path.write_text(new if old is None else path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        evaluate_sts(bag_of_words, sts13, ["STS13"])


def test_a_correlation_that_does_not_exist_is_none(sts13):
    (sts13 / "STS/STS13-en-test/STS.gs.FNWN.txt").write_text("3\n" * 6)
    result = evaluate_sts(random_vectors, sts13, ["STS13"])["STS13"]
    assert result["subsets"]["FNWN"] == {"spearman": None, "pearson": None, "n": 6}
    assert result["mean"] is None and result["pearson_wmean"] is None
    assert result["all"] is not None
    collapsed = evaluate_sts(lambda s: np.ones((len(s), 4)), sts13, ["STS13"])["STS13"]
    assert collapsed["all"] is None
    assert percent(collapsed["all"]) == "undefined" and percent(0.123456) == "12.35"


def test_rounding_noise_of_a_collapsed_encoder_is_no_correlation(sts13):
    rng = np.random.RandomState(0)
    noise = lambda s: 1 + rng.uniform(-1e-7, 1e-7, (len(s), 16))  # noqa: E731
    assert evaluate_sts(noise, sts13, ["STS13"])["STS13"]["all"] is None


def test_zero_vectors_have_cosine_zero():
    x = np.array([[0, 0], [3, 4]], dtype=np.float32)
    np.testing.assert_array_equal(cosine(x, np.array([[1, 0], [6, 8]], dtype=np.float32)), [0, 1])


def test_spearman_gives_ties_their_mean_rank():
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9486833)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda s: np.zeros(len(s)), r"shape \(\d+,\) .* must be \(\d+, d\)"),
        (lambda s: np.zeros((len(s) - 1, 3)), r"returned shape"),
        (lambda s: np.full((len(s), 3), np.nan), "hold NaN or inf"),
    ],
)
def test_an_encoder_that_returns_nonsense_is_refused(sts13, encode, message):
    with pytest.raises(InputError, match=message):
        evaluate_sts(encode, sts13, ["STS13"])


def test_unknown_names_are_refused(sts13):
    with pytest.raises(InputError, match="STS17; known are STS12"):
        evaluate_sts(bag_of_words, sts13, ["STS17"])
    with pytest.raises(InputError, match="'valid' is not one of"):
        evaluate_sts(bag_of_words, sts13, ["STS13"], split="valid")
    with pytest.raises(InputError, match="STS13 are test sets only"):
        evaluate_sts(bag_of_words, sts13, ["STS13"], split="dev")


def test_average_is_of_the_rounded_numbers():
    assert rounded_average([0.006, 0.006, 0.0, 0.0]) == 0.01  # 0.003 unrounded would print 0.00
    assert rounded_average([75.30, 84.67, 80.19, 85.40, 80.82, 84.25, 80.39]) == 81.57
    assert rounded_average([75.30, 84.67, 80.19, 85.40, 80.82, 84.26, 80.39]) == 81.58


def test_average_is_empty_when_a_task_is_missing():
    assert rounded_average([75.30, None]) is None
    assert rounded_average([]) is None
