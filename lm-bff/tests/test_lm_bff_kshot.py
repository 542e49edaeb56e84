"""K-shot splits: the published md5 sums, and what is refused."""

import hashlib
import subprocess
import sys
from collections import Counter

import pytest
from omegaconf import OmegaConf

from lm_bff import kshot
from lm_bff.data import load_splits
from lm_bff.tasks import CONFIGS, TASKS
from shared import InputError


def config(**changes):
    return OmegaConf.merge(OmegaConf.load(CONFIGS / "kshot.yaml"), changes)


@pytest.fixture
def originals(tmp_path):
    """CoLA (no header), MR (csv) and STS-B, of 40 lines or more; MR's class 1 has 12."""
    root = tmp_path / "original"
    for folder in ("CoLA", "mr", "STS-B"):
        (root / folder).mkdir(parents=True)
    cola = "".join(f"src\t{n % 2}\t\tsentence {n}\n" for n in range(80))
    (root / "CoLA/train.tsv").write_text(cola)
    (root / "CoLA/dev.tsv").write_text("src\t1\t\ta test sentence\n")
    (root / "mr/train.csv").write_text("".join(f'{int(n < 12)},"text, {n}"\n' for n in range(40)))
    (root / "mr/test.csv").write_text('1,"a ""test"""\n0,plain\n')
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    sts = "".join("\t".join([str(n), *"abcdef", f"x {n}", f"y {n}", str(n % 6)]) + "\n" for n in range(40))
    (root / "STS-B/train.tsv").write_text(header + "\n" + sts)
    (root / "STS-B/dev.tsv").write_text(header + "\n" + sts)
    return root


def test_the_published_list_has_230_files():
    sums = kshot.published_md5()
    assert sum(1 if seed is not None else 5 for _, _, seed in sums) == 230
    assert sums["SST-2", "train.tsv", 13] == "fe166f3b9e9952cb729a8d2c3bd682ae"
    assert sums["MNLI", "test_mismatched.tsv", None] == "b219e6fe74e4aa779e2f417ffe713053"


@pytest.mark.mirror
def test_every_published_file_of_the_mirror_matches(mirror):
    """180 of 230; absent are all of mpqa and subj (30), and the test files of MNLI, SNLI and QQP (20)."""
    assert kshot.verify_folder(mirror / "lm-bff/k-shot", list(TASKS.values())) == (180, 50)


@pytest.mark.mirror
def test_cola_is_drawn_again_from_the_full_data(mirror, tmp_path):
    """All ten files, in the one order of seeds that gives them."""
    raw = mirror / "mlm-masking" / "CoLA"
    folder = tmp_path / "original" / "CoLA"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_bytes((raw / "in_domain_train.tsv").read_bytes())
    # GLUE's dev set is a later version of CoLA's two.
    (folder / "dev.tsv").write_bytes((mirror / "lm-bff/k-shot/CoLA/test.tsv").read_bytes())
    output = kshot.make(config(tasks=["cola"], original=str(tmp_path / "original"), output_dir=str(tmp_path / "out")))
    assert kshot.verify_folder(output, [TASKS["cola"]]) == (15, 0)
    made = load_splits(TASKS["cola"], 16, 13, output)
    theirs = load_splits(TASKS["cola"], 16, 13, mirror / "lm-bff/k-shot")
    assert made == theirs
    other = kshot.make_task(TASKS["cola"], tmp_path / "original", 16, [13])
    assert hashlib.md5(other["train.tsv", 13].encode()).hexdigest() != kshot.published_md5()["CoLA", "train.tsv", 13]


def test_train_and_dev_are_the_first_and_next_of_every_class(originals, tmp_path):
    files = kshot.make_task(TASKS["mr"], originals, 4, [13, 21])
    train, dev = files["train.csv", 13].splitlines(), files["dev.csv", 13].splitlines()
    assert Counter(line[0] for line in train) == Counter(line[0] for line in dev) == {"0": 4, "1": 4}
    assert not set(train) & set(dev)
    assert [line[0] for line in train] in ([*"00001111"], [*"11110000"]), "grouped by label, in order of appearance"
    assert files["test.csv", None] == '1,"a ""test"""\n0,plain\n'


def test_ten_times_the_dev_set(originals):
    files = kshot.make_task(TASKS["mr"], originals, 1, [13], "k-shot-10x")
    assert len(files["dev.csv", 13].splitlines()) == 20
    assert files["train.csv", 13] == kshot.make_task(TASKS["mr"], originals, 1, [13])["train.csv", 13]


def test_scores_are_split_at_2_5(originals):
    rows = kshot.make_task(TASKS["sts-b"], originals, 5, [13])["train.tsv", 13].splitlines()
    assert rows[0].startswith("index\tgenre")
    assert Counter(float(row.split("\t")[-1]) >= 2.5 for row in rows[1:]) == {True: 5, False: 5}


def test_header_tasks_do_not_depend_on_the_order_of_seeds_and_cola_does(originals):
    forward = kshot.make_task(TASKS["mr"], originals, 2, [100, 13])
    assert forward["train.csv", 13] == kshot.make_task(TASKS["mr"], originals, 2, [13])["train.csv", 13]
    forward = kshot.make_task(TASKS["cola"], originals, 2, [100, 13])
    assert forward["train.tsv", 13] != kshot.make_task(TASKS["cola"], originals, 2, [13])["train.tsv", 13]


def test_bad_requests(originals, tmp_path):
    out = str(tmp_path / "out")
    arguments = {"original": str(originals), "output_dir": out}
    for changes, message in [
        ({"tasks": ["cola"], "seeds": [13], "k": 2}, r"seeds=\[13\] with task cola: its splits depend on"),
        ({"tasks": ["mr"], "k": 8}, "class 1 has 12 training examples, but k=8 needs 8 for train and 8 for dev"),
        ({"tasks": ["mr"], "k": 0}, "k=0"),
        ({"tasks": ["mr"], "mode": "10x"}, "mode=10x"),
        ({"tasks": ["sst-5"], "k": 2}, "is not there: give the original data of task sst-5"),
        ({"tasks": ["mnli-mm"]}, "second test set of mnli"),
        ({"tasks": ["cola"], "k": 16}, r"train.tsv of seed 100 has md5 \w+, but the published file has"),
    ]:
        with pytest.raises(InputError, match=message):
            kshot.make(config(**arguments, **changes))
    assert not (tmp_path / "out").exists(), "nothing is written by a refused request"


def test_short_classes_on_request(originals, tmp_path):
    output = kshot.make(
        config(
            tasks=["mr"], k=10, seeds=[13], original=str(originals), output_dir=str(tmp_path / "o"), allow_short=True
        )
    )
    splits = load_splits(TASKS["mr"], 10, 13, output, strict=False)
    assert Counter(e.label for e in splits.train) == {0: 10, 1: 10} and Counter(e.label for e in splits.dev)[1] == 2


def test_a_wrong_label_in_the_original_is_named(originals):
    (originals / "mr/train.csv").write_text("0,a\n3,b\n")
    with pytest.raises(InputError, match=r"train.csv, line 2: the label '3'"):
        kshot.make_task(TASKS["mr"], originals, 1, [13])


def test_converted_originals_are_not_held_to_the_md5_sums(originals, tmp_path):
    (originals / "CoLA" / kshot.CONVERTED).write_text("from the hub\n")
    output = kshot.make(
        config(
            tasks=["cola"], k=16, seeds=[100], original=str(originals), output_dir=str(tmp_path / "o"), allow_short=True
        )
    )
    assert (output / "CoLA/16-100/train.tsv").is_file()


def test_entrypoint_says_what_is_wrong_with_status_2(originals):
    command = [sys.executable, "-m", "lm_bff.kshot", f"original={originals}", "tasks=[cola]", "seeds=[13]", "k=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: seeds=[13] with task cola"), done.stderr
