"""From raw text to token files on the command line."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hydra import compose, initialize_config_dir

from mlm_masking.data import open_blocks
from mlm_masking.prepare import as_lines, prepare_data, source_of, training_lines
from mlm_masking.tokenizer import load_tokenizer
from shared import InputError, corpus

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TEXT = "  The first line.\nThe second, longer line of it. \n\nAnother document's line\n"


def data_config(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("prepare", list(overrides)).data


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 20)
    return path


def test_text_files_become_tokenizer_and_token_file(text, runs):
    prepared = prepare_data(data_config("data=textfiles", f"data.path={text}", "data.vocab_size=300"))
    folder = runs / "mlm-masking" / "data" / "text_bpe300"
    assert prepared.streams == (folder / "tokens",) and prepared.tokenizer == folder / "tokenizer"
    tokenizer, blocks = load_tokenizer(prepared.tokenizer), open_blocks(prepared.streams[0], 128)
    assert blocks.vocab_size == len(tokenizer) == 300
    expected = []
    for line in TEXT.removesuffix("\n").split("\n"):
        expected += [*tokenizer.encode(line.strip()), 2]
    assert blocks.tokens[: len(expected) * 2].tolist() == expected * 2


def test_what_is_there_is_not_made_again(text, runs, monkeypatch):
    config = data_config("data=textfiles", f"data.path={text}", "data.vocab_size=300")
    first = prepare_data(config)
    monkeypatch.setattr("mlm_masking.prepare.train_tokenizer", None)
    monkeypatch.setattr("shared.tokenization.writing.Worker", None)
    assert prepare_data(config) == first


def test_changed_text_is_not_taken_for_what_was_prepared(text, runs):
    config = data_config("data=textfiles", f"data.path={text}", "data.vocab_size=300")
    prepare_data(config)
    text.write_text(TEXT * 21)
    with pytest.raises(InputError, match="is there already, made of other documents"):
        prepare_data(config)


def test_another_tokenizer_is_used_where_it_is_named(text, runs):
    trained = prepare_data(data_config("data=textfiles", f"data.path={text}", "data.vocab_size=300"))
    named = data_config("data=textfiles", f"data.path={text}", f"data.tokenizer={trained.tokenizer}")
    prepared = prepare_data(named)
    assert prepared.streams[0].parent.name == "text_tokenizer"
    assert np.array_equal(open_blocks(prepared.streams[0], 16).tokens, open_blocks(trained.streams[0], 16).tokens)


def test_rows_of_documents_are_ended_by_an_empty_line(tmp_path, runs):
    rows = [{"text": "One.\n\nTwo. \n"}, {"text": "Other document."}] * 30
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "b.parquet")
    streams = []
    for name in ("a.jsonl", "b.parquet"):
        config = data_config(
            "data=textfiles", f"data.path={tmp_path / name}", "data.vocab_size=262", f"data.name={name[0]}"
        )
        prepared = prepare_data(config)
        streams.append(open_blocks(prepared.streams[0], 16).tokens)
    encode = load_tokenizer(prepared.tokenizer).encode
    expected = [*encode("One."), 2, *encode("Two."), 2, 2, *encode("Other document."), 2, 2]
    assert streams[0].tolist() == streams[1].tolist() == expected * 30


def test_lines_of_several_files_follow_one_another(tmp_path, runs):
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "b.jsonl").write_text('{"text": "second"}\n')
    paths = f"[{tmp_path / 'a.txt'},{tmp_path / 'b.jsonl'}]"
    source = source_of(data_config("data=textfiles", f"data.path={paths}"))
    assert [text for unit in source.units() for text in unit.read().texts] == ["first", "second\n"]


def test_documents_lose_empty_lines_within():
    assert as_lines("a\n\n \nb") == "a\nb\n" and as_lines("") == "\n"


def test_the_corpus_is_prepared_without_a_network(tmp_path, runs, monkeypatch):
    text = "A body of several words about the parsing of things. " * 5
    found = [corpus.Document(f"{text} {i}", "name", "Summary.", "https://a.example", "docs", "a") for i in range(20)]
    monkeypatch.setattr(corpus, "documents", lambda kinds, max_bytes: found)
    prepared = prepare_data(data_config("data=corpus", "data.vocab_size=280"))
    blocks = open_blocks(prepared.streams[0], 64, "complete_doc")
    assert len(blocks) == 40  # the summary fits, the long line does not


def test_a_tokenizer_is_trained_on_the_beginning(text):
    source = source_of(data_config("data=textfiles", f"data.path={text}"))
    few = list(training_lines(source, 40))
    assert few == ["The first line.", "The second, longer line of it."]


def fairseq_shard(folder: Path, entries: int) -> Path:
    folder.mkdir(parents=True)
    np.array([5, 6, 2], "<u2").tofile(folder / "train.bin")
    index = b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 8, 1) + struct.pack("<iq", 3, 0)
    (folder / "train.idx").write_bytes(index)
    (folder / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(entries)))
    return folder


def test_fairseq_shards_are_used_where_they_lie(text, tmp_path, runs, monkeypatch):
    tokenizer = prepare_data(data_config("data=textfiles", f"data.path={text}", "data.vocab_size=300")).tokenizer
    shard = fairseq_shard(tmp_path / "shard", 295)
    config = data_config("data=fairseq_bin", f"data.path={shard}", f"data.tokenizer={tokenizer}")
    assert prepare_data(config).streams == (shard,)
    other = fairseq_shard(tmp_path / "other", 296)
    config = data_config("data=fairseq_bin", f"data.path={other}", f"data.tokenizer={tokenizer}")
    with pytest.raises(InputError, match="dictionary has 301 ids, but the tokenizer tokenizer has 300"):
        prepare_data(config)
    for number in (10, 9, 0):
        fairseq_shard(tmp_path / "mirror" / "mlm-masking" / "wikibook_fairseq_format" / f"bin-shard{number}-8", 295)
    (tmp_path / "mirror" / "mlm-masking" / "wikibook_fairseq_format" / "dict.txt").write_text("0 1\n")
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path / "mirror"))
    prepared = prepare_data(data_config("data=wikibook_hub", f"data.tokenizer={tokenizer}"))
    assert [path.name for path in prepared.streams] == ["bin-shard0-8", "bin-shard9-8", "bin-shard10-8"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=textfiles"], "data.path is not set"),
        (["data=textfiles", "data.path={tmp}/none.txt"], "none.txt does not exist"),
        (["data=textfiles", "data.path={tmp}/empty.txt"], "the text is empty, or empty lines alone"),
        (["data=textfiles", "data.path={tmp}/blank.txt", "data.vocab_size=261"], "empty lines alone"),
        (["data=textfiles", "data.path={tmp}/a.pdf"], "give text"),
        (["data=textfiles", "data.path={tmp}/blank.txt", "data.vocab_size=100"], "at least 261"),
        (["data=textfiles", "data.path={tmp}/blank.txt", "data.tokenizer=gpt5"], "has no source 'gpt5'"),
        (["data=fairseq_bin"], "name a shard of fairseq's data"),
        (["data=fairseq_bin", "data.path={tmp}/none", "data.tokenizer=null"], "data.tokenizer is not set"),
        (["data=wikibook"], "'roberta_tokenizer' .* is not on this machine"),
        (["data=corpus", "data.kind=web"], "data.kind='web': choose one of"),
    ],
)
def test_what_cannot_be_prepared_ends_with_status_2_and_one_message(tmp_path, command, monkeypatch, overrides, message):
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path / "no mirror"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "a.pdf").write_text("x")
    status, error = command("prepare", *(override.format(tmp=tmp_path) for override in overrides))
    assert status == 2
    assert error.startswith("error: ")
    assert re.search(message, error)


def test_the_command_says_what_it_made(text, command, capsys, runs):
    assert command("prepare", "data=textfiles", f"data.path={text}", "data.vocab_size=300", "progress=false") == (0, "")
    assert (runs / "mlm-masking" / "data" / "text_bpe300" / "tokens" / "header.json").is_file()


@pytest.mark.mirror
def test_wikitext_is_prepared_from_the_mirror(tmp_path):
    prepared = prepare_data(data_config("data=wikitext2"), tmp_path / "wikitext2")
    parts = [open_blocks(prepared.streams[0], 128, part=part, valid_percent=20) for part in ("train", "valid")]
    assert [len(part) for part in parts] > [4000, 1000]
    assert parts[0].vocab_size == 2048
