"""Token files on disk: what is read is what was written, anything else is refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from datasets import Dataset

from shared import InputError
from shared.tokenization import TokenFile, iterable, seal, token_file, tokenize_documents
from shared.tokenization.token_file import token_dtype

ROWS = [
    {"text": "The first document.", "url": "https://a.example/1", "score": 1},
    {"text": "", "url": None, "score": 2.5},
    {"text": "The third,\nwith two lines.", "url": "https://a.example/3", "score": None},
]


@pytest.fixture
def file(tmp_path: Path, bpe) -> TokenFile:
    source = iterable(lambda: ROWS, "rows", metadata=("url", "score"))
    return tokenize_documents(source, bpe, tmp_path / "rows.tokens", before="bos", processes=1)


def expected(bpe) -> list[list[int]]:
    return [[bpe.bos_token_id, *bpe.encode(row["text"]), bpe.eos_token_id] for row in ROWS]


def test_stream_and_documents_are_the_tokens_of_the_texts(file, bpe):
    documents = expected(bpe)
    stream = [number for document in documents for number in document]
    assert len(file) == len(stream) and len(file.documents) == 3
    assert file[0] == 0 and file[-1] == 2 and file[1:5].tolist() == stream[1:5]
    assert [document.tolist() for document in file.documents] == documents
    assert file.documents[-1].tolist() == documents[2] and file.documents.lengths.tolist() == list(map(len, documents))
    with pytest.raises(IndexError):
        file.documents[3]
    assert file.documents.of_token(np.arange(len(stream))).tolist() == [
        number for number, document in enumerate(documents) for _ in document
    ]


def test_metadata_stands_beside_its_document(file):
    assert file.documents.metadata(0) == {"url": "https://a.example/1", "score": 1.0}
    assert file.documents.metadata(-2) == {"url": None, "score": 2.5}
    assert file.documents.column("url").tolist() == ["https://a.example/1", None, "https://a.example/3"]
    with pytest.raises(InputError, match=r"no metadata 'domain'; it has: .*url"):
        file.documents.column("domain")


def test_numpy_and_datasets_read_it_without_this_package(file, bpe):
    tokens = np.fromfile(file.path / "tokens.bin", "<u2")
    starts = np.load(file.path / "documents.npy")
    metadata = Dataset.from_file(str(file.path / "metadata.arrow"))
    assert tokens[starts[2] : starts[3]].tolist() == expected(bpe)[2]
    assert metadata[2]["url"] == "https://a.example/3"


def written_by_datasets(folder: Path, bpe) -> None:
    folder.mkdir()
    texts = Dataset.from_list([{"text": row["text"], "url": row["url"]} for row in ROWS])
    encode = lambda rows: {"ids": [[0, *ids, 2] for ids in bpe(rows["text"])["input_ids"]]}  # noqa: E731
    rows = texts.map(encode, batched=True).with_format("numpy", columns=["ids"])
    with (folder / "tokens.bin").open("wb") as out:
        lengths = [out.write(row["ids"].astype("<u2").tobytes()) // 2 for row in rows]
    np.save(folder / "documents.npy", np.cumsum([0, *lengths]))
    table = texts.select_columns("url").data.table
    with pyarrow.ipc.new_stream(folder / "metadata.arrow", table.schema) as out:
        out.write_table(table)


def test_datasets_writes_one_that_is_then_sealed(file, tmp_path, bpe):
    written_by_datasets(tmp_path / "other", bpe)
    other = seal(tmp_path / "other", bpe)
    assert np.array_equal(other.tokens, file.tokens)
    assert np.array_equal(other.documents.starts, file.documents.starts)
    assert other.documents.metadata(2) == {"url": "https://a.example/3"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "tokens.bin").unlink(), "has no tokens.bin"),
        (lambda folder: (folder / "tokens.bin").open("ab").write(b"x"), "no multiple of 2"),
        (
            lambda folder: (folder / "tokens.bin").open("ab").write(b"\xff\xff"),
            "token id 65535, but the vocabulary has 401",
        ),
        (lambda folder: np.save(folder / "documents.npy", np.array([0, 5])), "rise from 0 to"),
        (lambda folder: np.save(folder / "documents.npy", np.array([0, 900, 5])), "rise from 0 to"),
        (
            lambda folder: np.save(folder / "documents.npy", np.load(folder / "documents.npy")[[0, -1]]),
            "3 rows for 1 documents",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_not_sealed(tmp_path, bpe, change, message):
    written_by_datasets(tmp_path / "other", bpe)
    change(tmp_path / "other")
    with pytest.raises(InputError, match=message):
        seal(tmp_path / "other", bpe)
    assert not (tmp_path / "other" / "header.json").exists()


def overwrite(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def edit_header(folder: Path, **values) -> None:
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, **values}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: overwrite(folder / "tokens.bin", 6, b"\x07"), "tokens.bin was altered"),
        (lambda folder: overwrite(folder / "documents.npy", 130, b"\x07"), "documents.npy was altered"),
        (lambda folder: overwrite(folder / "metadata.arrow", 300, b"\x07"), "metadata.arrow was altered"),
        (lambda folder: (folder / "tokens.bin").write_bytes(b"\0\0"), "tokens.bin is truncated"),
        (lambda folder: (folder / "tokens.bin").open("ab").write(b"\0\0"), "tokens.bin is too long"),
        (lambda folder: (folder / "documents.npy").unlink(), "documents.npy is missing"),
        (lambda folder: edit_header(folder, tokens=3), "header.json was altered"),
        (lambda folder: edit_header(folder, dtype="uint32"), "header.json was altered"),
        (lambda folder: edit_header(folder, version=2), "version 2, but this reads token-file 1"),
        (lambda folder: (folder / "header.json").write_text("{"), "header.json is damaged"),
        (lambda folder: (folder / "header.json").write_text("[]"), "header.json is damaged"),
        (lambda folder: (folder / "header.json").unlink(), "is no token file: it has no header.json"),
    ],
)
def test_a_damaged_file_is_refused(file, damage, message):
    damage(file.path)
    with pytest.raises(InputError, match=message):
        TokenFile.open(file.path)


def test_damage_in_a_file_too_large_to_be_read_at_opening_is_found_by_verify(file, monkeypatch):
    overwrite(file.path / "tokens.bin", 6, b"\x07")
    monkeypatch.setattr(token_file, "CHECK_ON_OPEN_BYTES", 10)
    opened = TokenFile.open(file.path)
    with pytest.raises(InputError, match=r"tokens\.bin was altered"):
        opened.verify()


def test_another_tokenizer_is_refused(file, bpe):
    assert len(TokenFile.open(file.path, tokenizer=bpe)) == len(file)
    other = pickle.loads(pickle.dumps(bpe))
    other.add_tokens(["more"])
    with pytest.raises(InputError, match=r"was made with another tokenizer .*401 ids.*402 ids"):
        TokenFile.open(file.path, tokenizer=other)


def test_what_is_not_there_or_not_finished_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        TokenFile.open(tmp_path / "none.tokens")
    (tmp_path / ".none.tokens.partial").mkdir()
    with pytest.raises(InputError, match="was not finished; run the same command again"):
        TokenFile.open(tmp_path / "none.tokens")


def test_pickling_sends_the_path_and_not_the_tokens(tmp_path, bpe):
    source = iterable(lambda: ["many words " * 5000], "words")
    file = tokenize_documents(source, bpe, tmp_path / "words.tokens", processes=1)
    pickled = pickle.dumps(file)
    assert len(pickled) < 3000 < len(file)
    assert np.array_equal(pickle.loads(pickled).tokens, file.tokens)


def test_the_id_type_follows_the_vocabulary():
    assert token_dtype(65_536).name == "uint16" and token_dtype(65_537).name == "uint32"
    with pytest.raises(InputError, match="vocab_size=0"):
        token_dtype(0)
