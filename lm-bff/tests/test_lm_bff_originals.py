"""Original files from the hub's copies: what the readers find in them, and splits made of them."""

import json
from collections import Counter

import pytest
from omegaconf import OmegaConf

from lm_bff import kshot, originals
from lm_bff.data import load_splits, read_examples
from lm_bff.tasks import CONFIGS, TASKS
from shared import InputError

parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")


def config(name: str, **changes):
    return OmegaConf.merge(OmegaConf.load(CONFIGS / f"{name}.yaml"), changes)


@pytest.fixture
def hub_copies(tmp_path, monkeypatch):
    """A mirror with a few rows of every source, in the hub's columns."""
    root = tmp_path / "mirror" / "lm-bff"

    def table(path: str, rows: list[dict]) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".jsonl"):
            (root / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            parquet.write_table(pyarrow.Table.from_pylist(rows), root / path)

    for split in ("train", "validation"):
        name = f"{split}-00000-of-00001.parquet"
        table(f"glue/sst2/{name}", [{"sentence": f"s {n} ", "label": n % 2, "idx": n} for n in range(4)])
        table(f"glue/cola/{name}", [{"sentence": f"c {n}", "label": n % 2, "idx": n} for n in range(8)])
        pairs = [{"sentence1": f"a {n}", "sentence2": f"b\t{n}", "label": n % 2, "idx": n} for n in range(8)]
        for task in ("rte", "mrpc"):
            table(f"glue/{task}/{name}", pairs)
        table(f"glue/stsb/{name}", [{**row, "label": row["idx"] * 0.6} for row in pairs])
        table(f"glue/qnli/{name}", [{"question": "q", "sentence": f"s {n}", "label": n % 2} for n in range(8)])
        table(f"glue/qqp/{name}", [{"question1": "q", "question2": f"s {n}", "label": n % 2} for n in range(8)])
    nli = [{"premise": f"p {n}", "hypothesis": f"h {n}", "label": n % 4 - 1} for n in range(12)]
    for split in ("train", "validation_matched", "validation_mismatched"):
        table(f"glue/mnli/{split}-00000-of-00001.parquet", [row for row in nli if row["label"] >= 0])
    for split in ("train", "validation"):
        table(f"snli/plain_text/{split}-00000-of-00001.parquet", nli)
    for split in ("train", "dev", "test"):
        rows = [{"text": f"t, {n}", "label": n % 5, "label_text": "x"} for n in range(20)]
        table(f"sst5/{split}.jsonl", rows)
        sides = [{"text": f"t {n}", "label": n % 2, "label_text": ["objective", "subjective"][n % 2]} for n in range(8)]
        table(f"subj/{split}.jsonl", sides)
        table(f"trec/default/{split}/0000.parquet", [{"text": f"q {n}", "coarse_label": n % 6} for n in range(12)])
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path / "mirror"))
    return root


def test_every_task_of_the_hub_can_be_read_afterwards(hub_copies):
    output = originals.make(config("originals"))
    assert output == hub_copies / "original"
    for name, files in originals.ORIGINS.items():
        for file in files:
            assert read_examples(output / TASKS[name].folder / file, TASKS[name]), (name, file)
    read = {
        name: read_examples(output / TASKS[name].folder / TASKS[name].files["train"], TASKS[name])
        for name in originals.ORIGINS
    }
    assert Counter(e.label for e in read["sst-2"]) == {"0": 8, "1": 8}, "neutral sentences are left out"
    assert [e.label for e in read["trec"][:6]] == [2, 1, 0, 3, 4, 5], "the task's numbers, not the hub's"
    assert [e.label for e in read["subj"][:2]] == [1, 0], "0 is subjective"
    assert [e.label for e in read["snli"][:3]] == ["entailment", "neutral", "contradiction"], (
        "unlabelled ones are left out"
    )
    assert read["rte"][1].label == "not_entailment" and read["rte"][1].sentences == ("a 1", "b 1")
    assert read["sts-b"][3].label == pytest.approx(1.8)
    assert len(read["snli"]) == 9 and len(read["sst-5"]) == 20


def test_splits_are_made_of_them_without_md5(hub_copies, tmp_path):
    originals.make(config("originals", tasks=["mnli", "cola"]))
    output = kshot.make(config("kshot", tasks=["mnli"], k=1, seeds=[13]))
    assert output == hub_copies / "k-shot"
    splits = load_splits(TASKS["mnli"], 1, 13)
    assert len(splits.train) == 3 and set(splits.test) == {"mnli", "mnli-mm"}


def test_bad_requests(hub_copies, monkeypatch):
    with pytest.raises(InputError, match=r"tasks=\['mr'\]: not on the hub"):
        originals.make(config("originals", tasks=["mr"]))
    (hub_copies / "subj" / "train.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(InputError, match="a row cannot be read as one of subj"):
        originals.make(config("originals", tasks=["subj"]))
    assert not (hub_copies / "original" / "subj").exists()
    monkeypatch.delenv("REPRO_MIRROR")
    with pytest.raises(InputError, match="output_dir is not set"):
        originals.make(config("originals"))
