"""`python -m mlm_masking.prepare data=...`: raw text -> tokenizer -> token file, ready to be cut into blocks.

    runs/mlm-masking/data/<name>_<tokenizer>/
      tokenizer/   as AutoTokenizer loads it; trained on this text where none is given
      tokens/      the token file (`shared.tokenization`): every line stripped, encoded, ended by </s>; an empty line,
                   which ends a document, is </s> alone

What is there already is not made again, and what was interrupted goes on. fairseq's binary data is used where it lies.
"""

import functools
import itertools
import logging
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from mlm_masking.data import open_blocks
from mlm_masking.fairseq_bin import is_fairseq, read_fairseq, vocabulary_size
from mlm_masking.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from shared import InputError, hub
from shared import tokenization as tokens
from shared.launch import entrypoint
from shared.tokenization.documents import JSON_ENDINGS
from shared.training import runs_root

log = logging.getLogger(__name__)

PAPER = "mlm-masking"
KINDS = ("textfiles", "corpus", "hub", "fairseq_bin")


@dataclass(frozen=True)
class Prepared:
    """Where the data is: `streams` are token files (or fairseq shards, one for each epoch in turn)."""

    streams: tuple[Path, ...]
    tokenizer: Path


def prepare_data(
    data: DictConfig, folder: str | Path | None = None, processes: int | None = None, progress: bool = False
) -> Prepared:
    """Make what is missing of a data set; one process at a time.

    Args:
        data: the `data` group of the configuration. folder: where; None: runs/mlm-masking/data/<name>_<tokenizer>.
    Raises:
        InputError: text or a tokenizer that cannot be read or is not there, or empty text.
    """
    if data.kind not in KINDS:
        raise InputError(f"data.kind={data.kind!r}: choose one of {', '.join(KINDS)}")
    if data.kind == "fairseq_bin":
        return _fairseq(data)
    given = _given_tokenizer(data)
    suffix = f"bpe{data.vocab_size}" if given is None else given.name.removesuffix("-tokenizer")
    folder = Path(folder) if folder is not None else runs_root() / PAPER / "data" / f"{data.name}_{suffix}"
    documents = source_of(data)
    tokenizer_folder = folder / "tokenizer"
    if tokenizer_folder.is_dir():
        tokenizer = load_tokenizer(tokenizer_folder)
    else:
        tokenizer = load_tokenizer(given) if given is not None else _train(documents, data)
        save_tokenizer(tokenizer, tokenizer_folder)
    stream = tokens.tokenize_documents(
        documents, tokenizer, folder / "tokens", by_line=True, processes=processes, progress=progress
    )
    return Prepared((stream.path,), tokenizer_folder)


def source_of(data: DictConfig) -> tokens.Source:
    """The documents of a data set; raises InputError where they are not at hand."""
    if data.kind == "corpus":
        return tokens.offline_corpus(max_bytes=data.max_bytes).map(as_lines)
    if data.kind == "textfiles":
        if data.path is None:
            raise InputError("data.path is not set: name the text file(s), e.g. data.path=my_text.txt")
        return files_source(_listed(data.path), data.text)
    parts = []
    for name in _listed(data.source):
        path = hub.locate(PAPER, name)
        found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _kind(file))
        files = [path / file for file in data.files] if data.files else found
        parts.append(files_source(files, data.text, rows_are_lines=name in (data.line_sources or ())))
    return functools.reduce(operator.add, parts)


def files_source(files: Sequence[str | Path], text: str = "text", rows_are_lines: bool = False) -> tokens.Source:
    """Text files line by line; of JSON lines and parquet each row is a document, or, `rows_are_lines`, a line."""
    parts = []
    for kind, group in itertools.groupby(map(Path, files), _kind):
        if kind == "text":
            parts.append(tokens.text_files(list(group)))
        elif kind:
            rows = (tokens.parquet if kind == "parquet" else tokens.json_lines)(list(group), text)
            parts.append(rows if rows_are_lines else rows.map(as_lines))
        else:
            raise InputError(f"{next(group)}: give text (.txt), JSON lines (.jsonl) or .parquet files")
    if not parts:
        raise InputError("there are no text, JSON lines or parquet files to prepare")
    return functools.reduce(operator.add, parts)


def as_lines(text: str) -> str:
    """A document as raw text has it: its lines, without empty ones, and then an empty one."""
    return "\n".join(line for line in text.split("\n") if line.strip()) + "\n"


def training_lines(documents: tokens.Source, max_bytes: int) -> Iterator[str]:
    """The beginning of a source as stripped lines, for a tokenizer to be trained on."""
    size = 0
    for unit in documents.units():
        for text in unit.read().texts:
            yield from map(str.strip, text.split("\n"))
            size += len(text.encode("utf-8", "replace"))
            if size >= max_bytes:
                return


def _given_tokenizer(data: DictConfig) -> Path | None:
    """The folder of a tokenizer that was not trained here."""
    if data.tokenizer is None:
        return None
    folder = Path(str(data.tokenizer)).expanduser()
    return folder if folder.exists() else hub.locate(PAPER, str(data.tokenizer))


def _train(documents: tokens.Source, data: DictConfig) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(training_lines(documents, data.tokenizer_bytes), data.vocab_size)
    log.info("tokenizer of %d entries trained on %s", len(tokenizer), data.name)
    return tokenizer


def _fairseq(data: DictConfig) -> Prepared:
    """fairseq's shards, looked over: each must open, with a dictionary as large as the tokenizer."""
    if (data.path is None) == (data.source is None):
        raise InputError("data.path: name a shard of fairseq's data (or set data.source), one of the two")
    paths = _listed(data.path) if data.path is not None else _shards(hub.locate(PAPER, data.source))
    given = _given_tokenizer(data)
    if given is None:
        raise InputError(
            "data.tokenizer is not set: name the tokenizer the shard was made with, e.g. roberta_tokenizer"
        )
    size = len(load_tokenizer(given))
    for path in paths:
        if not is_fairseq(path):
            raise InputError(f"data.path={path}: no train.bin and train.idx there")
        read_fairseq(path)
        if vocabulary_size(path) != size:
            raise InputError(
                f"{path}: its dictionary has {vocabulary_size(path)} ids, but the tokenizer {given.name} has {size}"
            )
    return Prepared(tuple(map(Path, paths)), given)


def _shards(folder: Path) -> list[Path]:
    shards = [index.parent for index in folder.glob("bin-shard*/train.idx")]
    if not shards:
        raise InputError(f"{folder} has no shards (bin-shard*/train.idx)")
    return sorted(shards, key=lambda shard: int(re.search(r"\d+", shard.name).group()))


def _listed(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        raise InputError("data.source is not set: name a source of sources.yaml")
    return [str(item) for item in value] if isinstance(value, list | tuple | ListConfig) else [str(value)]


def _kind(file: Path) -> str | None:
    """text, json or parquet, by a file's name; None for other files, and for the mirror's own records."""
    if file.name.endswith((".txt", ".txt.gz")):
        return "text"
    if file.name.endswith(".parquet"):
        return "parquet"
    return "json" if file.name.endswith(JSON_ENDINGS) and file.name != "MIRROR.json" else None


def _report(prepared: Prepared, data: DictConfig) -> None:
    console = Console()
    for path in prepared.streams:
        blocks = open_blocks(path, 128, data.mode)
        console.print(
            f"{path}: {len(blocks.tokens):,} tokens, {len(blocks):,} blocks of 128, {blocks.vocab_size:,} ids",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"tokenizer: {prepared.tokenizer}", highlight=False, soft_wrap=True)


@entrypoint(config_name="prepare")
def main(cfg: DictConfig) -> None:
    _report(prepare_data(cfg.data, cfg.output_dir, cfg.processes, cfg.progress), cfg.data)


if __name__ == "__main__":
    main()
