"""`python -m lm_bff.originals`: the full data of the tasks in the authors' layout, from public data sets on the hub.

The authors' archive is not on the hub. This writes `original/<task>/{train,dev or test}.{tsv,csv}` for the twelve tasks
whose data are, with the columns the readers expect; columns that the hub's copy lacks (parses, ids) are empty. A file
CONVERTED beside them says so: `lm_bff.kshot` makes splits from them, but does not hold them to the published md5 sums.
MR, CR and MPQA are in the authors' archive only.

SST-2 is the sentence-level set: SST-5's training sentences without the neutral ones (6,920), tested on GLUE's dev set.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from lm_bff.data import PAPER
from lm_bff.kshot import CONVERTED
from lm_bff.tasks import TASKS, Task, get_task
from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import write_atomic

Row = Mapping[str, Any]
NLI = ("entailment", "neutral", "contradiction")
# The hub's order of TREC's coarse labels (ABBR, ENTY, DESC, HUM, LOC, NUM) in the numbers of the task.
TREC = (2, 1, 0, 3, 4, 5)
HUB_ONLY_HEADER = "column"


@dataclass(frozen=True)
class Origin:
    """Where a file comes from: a source, a pattern in it, and how a row becomes (label, sentences), or None to skip."""

    source: str
    pattern: str
    convert: Callable[[Row], tuple[str, tuple[str, ...]] | None]


def _pair(first: str, second: str, names: tuple[str, ...]) -> Callable[[Row], tuple[str, tuple[str, ...]] | None]:
    def convert(row: Row):
        return None if row["label"] < 0 else (names[row["label"]], (row[first], row[second]))

    return convert


def _single(text: str = "sentence") -> Callable[[Row], tuple[str, tuple[str, ...]]]:
    return lambda row: (str(row["label"]), (row[text],))


def _two_classes(row: Row):
    return None if row["label"] == 2 else (str(int(row["label"] > 2)), (row["text"],))


def _subjectivity(row: Row):
    return str(("subjective", "objective").index(row["label_text"])), (row["text"],)


def _question(row: Row):
    return str(TREC[row["coarse_label"]]), (row["text"],)


def _score(row: Row):
    return f"{row['label']:g}", (row["sentence1"], row["sentence2"])


ENTAILMENT = ("entailment", "not_entailment")
NUMBERS = ("0", "1")
_SNLI, _MNLI = _pair("premise", "hypothesis", NLI), _pair("premise", "hypothesis", NLI)
_QNLI, _RTE = _pair("question", "sentence", ENTAILMENT), _pair("sentence1", "sentence2", ENTAILMENT)
_MRPC, _QQP = _pair("sentence1", "sentence2", NUMBERS), _pair("question1", "question2", NUMBERS)
ORIGINS: dict[str, dict[str, Origin]] = {
    "sst-2": {
        "train.tsv": Origin("sst5", "train.jsonl", _two_classes),
        "dev.tsv": Origin("glue", "sst2/validation-*.parquet", _single()),
    },
    "sst-5": {
        "train.csv": Origin("sst5", "train.jsonl", _single("text")),
        "test.csv": Origin("sst5", "test.jsonl", _single("text")),
    },
    "subj": {
        "train.csv": Origin("subj", "train.jsonl", _subjectivity),
        "test.csv": Origin("subj", "test.jsonl", _subjectivity),
    },
    "trec": {
        "train.csv": Origin("trec", "*/train/*.parquet", _question),
        "test.csv": Origin("trec", "*/test/*.parquet", _question),
    },
    "cola": {
        "train.tsv": Origin("glue", "cola/train-*.parquet", _single()),
        "dev.tsv": Origin("glue", "cola/validation-*.parquet", _single()),
    },
    "mnli": {
        "train.tsv": Origin("glue", "mnli/train-*.parquet", _MNLI),
        "dev_matched.tsv": Origin("glue", "mnli/validation_matched-*.parquet", _MNLI),
        "dev_mismatched.tsv": Origin("glue", "mnli/validation_mismatched-*.parquet", _MNLI),
    },
    "snli": {
        "train.tsv": Origin("snli", "plain_text/train-*.parquet", _SNLI),
        "dev.tsv": Origin("snli", "plain_text/validation-*.parquet", _SNLI),
    },
    **{
        name: {
            "train.tsv": Origin("glue", f"{folder}/train-*.parquet", convert),
            "dev.tsv": Origin("glue", f"{folder}/validation-*.parquet", convert),
        }
        for name, folder, convert in (
            ("qnli", "qnli", _QNLI),
            ("rte", "rte", _RTE),
            ("mrpc", "mrpc", _MRPC),
            ("qqp", "qqp", _QQP),
            ("sts-b", "stsb", _score),
        )
    },
}


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a parquet or JSON lines file."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    else:
        for line in path.read_text("utf-8").splitlines():
            yield json.loads(line)


def columns_of(task: Task, label: str, sentences: tuple[str, ...]) -> list[str]:
    """A row with label and sentences where the task's reader looks for them, the rest empty."""
    reader = task.reader
    last = max(*reader.sentences, reader.label) + (1 if reader.label < 0 else 0)
    columns = [""] * (last + 1)
    for place, text in zip(reader.sentences, sentences, strict=True):
        columns[place] = " ".join(text.split())  # no tab or line end may stand in a sentence
    columns[reader.label] = label
    return columns


def convert(task: Task, origin: Origin, folder: Path) -> str:
    """The content of one original file.

    Raises:
        InputError: no file of that pattern, a column that is not there, or no rows.
    """
    paths = sorted(folder.glob(origin.pattern))
    if not paths:
        raise InputError(f"task={task.name}: source {origin.source} has no {origin.pattern} in {folder}")
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\n")
    count = 0
    for path in paths:
        for row in read_rows(path):
            try:
                found = origin.convert(row)
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise InputError(f"{path}: a row cannot be read as one of {task.name} ({error!r}): {row}") from None
            if found is None:
                continue
            columns = columns_of(task, *found)
            if count == 0 and task.reader.header:
                written.write("\t".join(f"{HUB_ONLY_HEADER}{n}" for n in range(len(columns))) + "\n")
            if task.reader.format == "csv":
                writer.writerow(columns)
            else:
                written.write("\t".join(columns) + "\n")
            count += 1
    if not count:
        raise InputError(f"task={task.name}: {origin.source} {origin.pattern} has no rows")
    return written.getvalue()


def make(cfg: DictConfig) -> Path:
    """Write the original files of `tasks`; returns their folder."""
    if cfg.output_dir is None:
        mirror = hub.mirror_folder(PAPER)
        if mirror is None:
            raise InputError("output_dir is not set: say where to write, or set REPRO_MIRROR for its lm-bff/original")
        output = mirror / "original"
    else:
        output = Path(cfg.output_dir).expanduser()
    tasks = [get_task(name) for name in (cfg.tasks or list(ORIGINS))]
    if absent := [task.name for task in tasks if task.name not in ORIGINS]:
        raise InputError(
            f"tasks={absent}: not on the hub; put {', '.join(TASKS[name].folder for name in absent)} of the authors' "
            f"archive into {output}"
        )
    console = Console()
    for task in tasks:
        origins = ORIGINS[task.name]
        folders = {origin.source: hub.locate(PAPER, origin.source) for origin in origins.values()}
        texts = {file: convert(task, origin, folders[origin.source]) for file, origin in origins.items()}
        sources = "".join(f"{file}: {o.source} {o.pattern}\n" for file, o in origins.items())
        # First, so that no file of ours can be taken for the authors'.
        write_atomic(output / task.folder / CONVERTED, f"made by python -m lm_bff.originals\n{sources}")
        for file, text in texts.items():
            write_atomic(output / task.folder / file, text)
        console.print(f"{task.name}: {', '.join(texts)} in {output / task.folder}", soft_wrap=True)
    return output


main = entrypoint(config_name="originals")(make)

if __name__ == "__main__":
    main()
