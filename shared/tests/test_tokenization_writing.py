"""Making token files: every source, any number of processes, killed at any moment, in bounded memory."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from datasets import Dataset, IterableDataset

from shared import InputError, corpus, tokenization
from shared.tokenization import TokenFile, documents, growing, tokenize_documents, writing
from shared.tokenization.token_file import partial_folder

TEXTS = ["One line.", "", "A second document\n\nof two paragraphs,  and blanks. ", "Grüße – 中文", "the end"]


def ids(bpe, texts, after=True) -> list[list[int]]:
    return [bpe.encode(text) + [2] * after for text in texts]


def content(file: TokenFile) -> list[list[int]]:
    return [document.tolist() for document in file.documents]


def write_jsonl(path: Path, texts=TEXTS) -> Path:
    path.write_text("".join(json.dumps({"text": t, "n": i}) + "\n" for i, t in enumerate(texts)), "utf-8")
    return path


def prose(seed: int, size: int) -> str:
    """Lines of made-up words, `size` letters of them, some lines empty."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 8))) for _ in range(3000)]
    lines, total = [], 0
    while total < size:
        lines.append(" ".join(draw.choices(words, k=draw.randint(0, 14))))
        total += len(lines[-1]) + 1
    return "\n".join(lines) + "\n"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "dataset", "iterable_dataset", "iterable"])
def test_every_source_of_rows_gives_the_same_tokens(tmp_path, bpe, kind):
    rows = Dataset.from_list([{"text": text, "n": number} for number, text in enumerate(TEXTS)])
    plain = write_jsonl(tmp_path / "rows.jsonl")
    if kind == "jsonl":
        source = tokenization.json_lines(plain, metadata=["n"])
    elif kind == "jsonl.gz":
        (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
        source = tokenization.json_lines([tmp_path / "rows.jsonl.gz"], metadata=["n"])
    elif kind == "parquet":
        rows.to_parquet(tmp_path / "rows.parquet")
        source = tokenization.parquet(tmp_path / "rows.parquet", metadata=["n"])
    elif kind == "iterable":
        source = tokenization.iterable(lambda: iter(rows), "rows", metadata=["n"])
    else:
        source = tokenization.dataset(rows if kind == "dataset" else rows.to_iterable_dataset(), metadata=["n"])
    file = tokenize_documents(source, bpe, tmp_path / "out.tokens", processes=1)
    assert content(file) == ids(bpe, TEXTS)
    assert file.documents.column("n").tolist() == [0, 1, 2, 3, 4]


def test_a_line_of_a_text_file_is_a_document(tmp_path, bpe):
    (tmp_path / "a.txt").write_bytes("first\r\n\n Grüße\nno line feed at the end".encode())
    (tmp_path / "b.txt").write_bytes(b"other\n")
    source = tokenization.text_files([tmp_path / "a.txt", tmp_path / "b.txt"])
    file = tokenize_documents(source, bpe, tmp_path / "out.tokens", processes=1)
    assert content(file) == ids(bpe, ["first", "", " Grüße", "no line feed at the end", "other"])
    assert file.documents.table.num_columns == 0 and file.documents.metadata(0) == {}


def test_a_whole_file_is_a_document_with_its_name(tmp_path, bpe):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    file = tokenize_documents(
        tokenization.text_files(tmp_path / "a.txt", split="file"), bpe, tmp_path / "o", processes=1
    )
    assert content(file) == ids(bpe, ["one\ntwo\n"]) and file.documents.metadata(0) == {"file": "a.txt"}


def test_the_offline_corpus_keeps_where_each_document_is_from(tmp_path, bpe, monkeypatch):
    found = [corpus.Document("the body", "a.title", "Summary.", "https://a.example", "docs", "a")]
    monkeypatch.setattr(corpus, "documents", lambda kinds, max_bytes: found)
    file = tokenize_documents(tokenization.offline_corpus(max_bytes=1000), bpe, tmp_path / "c.tokens", processes=1)
    assert content(file) == ids(bpe, ["Summary.\n\nthe body"])
    assert file.documents.metadata(0)["origin"] == "https://a.example"


def test_files_of_a_named_source_are_read_by_their_kind(tmp_path, bpe, papers, monkeypatch):
    papers({"pages": {"kind": "files", "mirror": "pages", "files": ["*.jsonl"]}})
    (tmp_path / "mirror" / "toy" / "pages").mkdir(parents=True)
    write_jsonl(tmp_path / "mirror" / "toy" / "pages" / "rows.jsonl")
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path / "mirror"))
    file = tokenize_documents(tokenization.hub_files("toy", "pages"), bpe, tmp_path / "p.tokens", processes=1)
    assert content(file) == ids(bpe, TEXTS)


def test_lines_of_a_document_may_each_be_ended(tmp_path, bpe):
    source = tokenization.iterable(lambda: [" a b \n\nc", "d"], "two")
    file = tokenize_documents(source, bpe, tmp_path / "out.tokens", before="bos", by_line=True, processes=1)
    assert content(file) == [[0, *bpe.encode("a b"), 2, 0, 2, 0, *bpe.encode("c"), 2], [0, *bpe.encode("d"), 2]]


def test_sources_are_changed_and_joined(tmp_path, bpe):
    first = tokenization.iterable(lambda: ["Ab"], "first").map(str_upper)
    second = tokenization.iterable(lambda: ["Cd"], "second")
    file = tokenize_documents(first + second, bpe, tmp_path / "out.tokens", after=None, processes=1)
    assert content(file) == ids(bpe, ["AB", "Cd"], after=False)
    with pytest.raises(InputError, match="different metadata"):
        first + tokenization.iterable(lambda: [], "third", metadata=["n"])


def str_upper(text: str) -> str:
    return text.upper()


def test_large_vocabularies_get_32_bits(tmp_path, bpe):
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel({f"w{number}": number for number in range(70_000)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file = tokenize_documents(
        tokenization.iterable(lambda: ["w1 w69999"], "words"), raw, tmp_path / "out", after=None, processes=1
    )
    assert file.dtype.name == "uint32" and file[:].tolist() == [1, 69_999]


def test_the_bytes_do_not_depend_on_the_number_of_processes_or_units(tmp_path, bpe, monkeypatch):
    (tmp_path / "text.txt").write_text(prose(1, 300_000))
    monkeypatch.setattr(documents, "UNIT_BYTES", 20_000)
    monkeypatch.setattr(writing, "UNITS_ALONE", 1)
    made = []
    for processes in (1, 2, 3):
        source = tokenization.text_files(tmp_path / "text.txt")
        made.append(files_of(tokenize_documents(source, bpe, tmp_path / f"{processes}", processes=processes).path))
    monkeypatch.setattr(documents, "UNIT_BYTES", 7_919)
    source = tokenization.text_files(tmp_path / "text.txt")
    made.append(files_of(tokenize_documents(source, bpe, tmp_path / "other units", processes=1).path))
    assert made[0] == made[1] == made[2] == made[3]


CHILD = """
from tokenizers import Tokenizer

from shared.tokenization import documents, growing, json_lines, text_files, tokenize_documents, writing
documents.UNIT_BYTES, growing.CHECKPOINT_SECONDS, writing.UNITS_ALONE = {unit_bytes}, {checkpoint_seconds}, {alone}
if __name__ == "__main__":
    tokenizer = Tokenizer.from_file({tokenizer!r})
    tokenize_documents({source}, tokenizer, {out!r}, after=None, processes={processes})
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.fixture
def child(tmp_path, bpe):
    """`child(source, out, ...)` starts a Python of its own that tokenizes."""
    bpe.backend_tokenizer.save(str(tmp_path / "bpe.json"))
    running = []

    def start(
        source: str, out: Path, processes=2, unit_bytes=20_000, checkpoint_seconds=0, alone=2
    ) -> subprocess.Popen:
        script = tmp_path / "child.py"
        options = {"processes": processes, "unit_bytes": unit_bytes, "alone": alone}
        options |= {"checkpoint_seconds": checkpoint_seconds, "source": source}
        script.write_text(CHILD.format(tokenizer=str(tmp_path / "bpe.json"), out=str(out), **options))
        running.append(subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def units_done(out: Path) -> int:
    try:
        return json.loads((partial_folder(out) / growing.PROGRESS).read_text())["units"]
    except (FileNotFoundError, ValueError):
        return 0


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, bpe, child):
    lines = prose(2, 1_500_000).splitlines()
    rows = (json.dumps({"text": line, "url": f"https://a.example/{n}"}) for n, line in enumerate(lines))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    out, source = tmp_path / "killed", tokenization.json_lines(tmp_path / "rows.jsonl", metadata=["url"])
    whole = tokenize_documents(source, bpe.backend_tokenizer, tmp_path / "whole", after=None, processes=1)
    for kill_after in (1, 40):  # the first before other processes are started
        process = child(f"json_lines({str(tmp_path / 'rows.jsonl')!r}, metadata=['url'])", out)
        wait_for(lambda after=kill_after: units_done(out) >= after, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert units_done(out) >= kill_after and not out.exists()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive, "workers outlive their parent"
        with (partial_folder(out) / "tokens.bin").open("ab") as file:
            file.write(b"half a unit that no checkpoint knows of")
        # A kill may also fall between writing the next progress and renaming it.
        (partial_folder(out) / f".progress.json.{process.pid}.tmp").write_text('{"units": ')
    assert child(f"json_lines({str(tmp_path / 'rows.jsonl')!r}, metadata=['url'])", out).wait() == 0
    assert files_of(out) == files_of(whole.path)
    assert len(TokenFile.open(out).documents) == len(lines) and not partial_folder(out).exists()


def test_what_was_done_is_not_done_again(tmp_path, bpe, monkeypatch):
    (tmp_path / "text.txt").write_text(prose(3, 100_000))
    monkeypatch.setattr(documents, "UNIT_BYTES", 10_000)
    monkeypatch.setattr(growing, "CHECKPOINT_SECONDS", 0)
    worked = []
    original = writing.Worker.__call__

    def fail_at_the_sixth(self, unit):
        worked.append(unit.start)
        if len(worked) == 6:
            raise KeyboardInterrupt
        return original(self, unit)

    monkeypatch.setattr(writing.Worker, "__call__", fail_at_the_sixth)
    source = tokenization.text_files(tmp_path / "text.txt")
    with pytest.raises(KeyboardInterrupt):
        tokenize_documents(source, bpe, tmp_path / "out", processes=1)
    tokenize_documents(source, bpe, tmp_path / "out", processes=1)
    assert worked == [*range(0, 60_000, 10_000), *range(50_000, 100_000 + 1, 10_000)][: len(worked)]
    before = len(worked)
    tokenize_documents(source, bpe, tmp_path / "out", processes=1)
    assert len(worked) == before


def test_ended_between_the_last_write_and_the_renaming_it_is_only_renamed(tmp_path, bpe, monkeypatch):
    source = tokenization.text_files(write_jsonl(tmp_path / "a.txt"))
    renamed = []

    def fail_once(self, target):
        renamed.append(target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", fail_once)
        tokenize_documents(source, bpe, tmp_path / "out", processes=1)
    assert renamed and not (tmp_path / "out").exists()
    monkeypatch.setattr(writing.Worker, "__call__", None)
    file = tokenize_documents(source, bpe, tmp_path / "out", processes=1)
    assert sorted(files_of(file.path)) == ["documents.npy", "header.json", "tokens.bin"]


def test_memory_does_not_grow_with_the_corpus(tmp_path, child):
    peaks = []
    for size in (2_000_000, 24_000_000):
        (tmp_path / "text.txt").write_text(prose(4, 1_000_000) * (size // 1_000_000))
        process = child(f"text_files({str(tmp_path / 'text.txt')!r})", tmp_path / str(size), 1, 2**18, 5.0)
        peak, _ = process.communicate()
        assert process.returncode == 0
        peaks.append(int(peak) * 1024)
    assert (tmp_path / "24000000" / "tokens.bin").stat().st_size > 15_000_000
    assert peaks[1] - peaks[0] < 8_000_000


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b""), "empty lines alone"),
        (lambda p: p.write_bytes(b"\n\n\n"), "empty lines alone"),
        (lambda p: p.write_bytes(b"fine\ncaf\xe9\n"), r"byte 5: byte 0xe9 is not UTF-8"),
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "is a folder"),
    ],
)
def test_text_that_cannot_be_used_is_refused(tmp_path, bpe, write, message):
    write(tmp_path / "text.txt")
    with pytest.raises(InputError, match=message):
        tokenize_documents(tokenization.text_files(tmp_path / "text.txt"), bpe, tmp_path / "out", processes=1)
    assert {path.name for path in tmp_path.iterdir()} <= {"text.txt"}, "something half-written is left"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 1}", r"rows.jsonl, byte 15: not JSON"),
        ('{"text": 1}', "needs a string in field 'text', but field 'text' is int"),
        ('{"body": "x"}', "field 'text' is NoneType; its fields: body"),
        ('["text"]', "needs a string in field 'text', but list"),
    ],
)
def test_a_wrong_row_is_named_by_its_place(tmp_path, bpe, line, message):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n\n' + line)
    with pytest.raises(InputError, match=message):
        tokenize_documents(tokenization.json_lines(tmp_path / "rows.jsonl"), bpe, tmp_path / "out", processes=1)


def test_an_error_in_a_worker_reaches_the_user(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(documents, "UNIT_BYTES", 10_000)
    monkeypatch.setattr(writing, "UNITS_ALONE", 0)
    (tmp_path / "text.txt").write_bytes(prose(5, 60_000).encode() + b"caf\xe9\n")
    with pytest.raises(InputError, match="0xe9 is not UTF-8"):
        tokenize_documents(tokenization.text_files(tmp_path / "text.txt"), bpe, tmp_path / "out", processes=2)


def test_damaged_containers_are_refused(tmp_path, bpe):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match="is no parquet file"):
        tokenization.parquet(tmp_path / "a.parquet")
    Dataset.from_dict({"body": ["x"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match="no column 'text'; it has: body"):
        tokenization.parquet(tmp_path / "b.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    with pytest.raises(InputError, match="no whole gzip file"):
        tokenize_documents(tokenization.json_lines(tmp_path / "a.jsonl.gz"), bpe, tmp_path / "out", processes=1)
    with pytest.raises(InputError, match="no column 'text'"):
        tokenization.dataset(Dataset.from_dict({"body": ["x"]}))
    with pytest.raises(InputError, match="no files given"):
        tokenization.text_files([])
    with pytest.raises(InputError, match="split='page': choose line or file"):
        tokenization.text_files(tmp_path / "a.parquet", split="page")


def test_settings_that_cannot_be_are_refused(tmp_path, bpe):
    source = tokenization.iterable(lambda: ["a"], "a")
    with pytest.raises(InputError, match="processes=0"):
        tokenize_documents(source, bpe, tmp_path / "out", processes=0)
    with pytest.raises(InputError, match="after='cls': no such special token; the tokenizer has: bos"):
        tokenize_documents(source, bpe, tmp_path / "out", after="cls")


def test_another_input_does_not_take_over_what_is_there(tmp_path, bpe):
    source = tokenization.iterable(lambda: ["a"], "a")
    tokenize_documents(source, bpe, tmp_path / "out", processes=1)
    for other, options in ((source, {"after": None}), (tokenization.iterable(lambda: ["b"], "b"), {})):
        with pytest.raises(InputError, match="is there already, made of other documents"):
            tokenize_documents(other, bpe, tmp_path / "out", processes=1, **options)


def interrupted(rows):
    yield from rows
    raise KeyboardInterrupt


def test_a_begun_file_is_not_continued_with_other_documents(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(documents, "UNIT_BYTES", 10)
    monkeypatch.setattr(growing, "CHECKPOINT_SECONDS", 0)
    rows = ["the first row", "the second row", "the third row"]
    with pytest.raises(KeyboardInterrupt):
        tokenize_documents(
            tokenization.iterable(lambda: interrupted(rows[:2]), "rows"), bpe, tmp_path / "o", processes=1
        )
    changed = tokenization.iterable(lambda: ["another first row", *rows[1:]], "rows")
    with pytest.raises(InputError, match="are not what they were when it was begun"):
        tokenize_documents(changed, bpe, tmp_path / "o", processes=1)
    with pytest.raises(InputError, match="holds the beginning of a token file of other documents"):
        tokenize_documents(tokenization.iterable(lambda: rows, "other"), bpe, tmp_path / "o", processes=1)
    file = tokenize_documents(tokenization.iterable(lambda: rows, "rows"), bpe, tmp_path / "o", processes=1)
    assert content(file) == ids(bpe, rows)


def test_two_writers_do_not_meet(tmp_path, bpe):
    with (
        growing.GrowingTokenFile(tmp_path / "out", "fingerprint", np.dtype("<u2"), ()),
        pytest.raises(InputError, match="another process is making"),
    ):
        tokenize_documents(tokenization.iterable(lambda: ["a"], "a"), bpe, tmp_path / "out", processes=1)


def test_nested_and_mixed_metadata_become_json(tmp_path, bpe):
    rows = [{"text": "a", "x": [1, {"y": "é"}], "m": 1, "b": True}, {"text": "b", "x": None, "m": "one", "b": False}]
    source = tokenization.iterable(lambda: rows, "nested", metadata=["x", "m", "b"])
    file = tokenize_documents(source, bpe, tmp_path / "out", processes=1)
    assert file.documents.metadata(0) == {"x": '[1, {"y": "é"}]', "m": "1", "b": True}
    assert file.documents.metadata(1) == {"x": None, "m": "one", "b": False}


def test_iterable_data_sets_without_known_columns_are_read(tmp_path, bpe):
    def rows():
        yield from ({"text": text} for text in TEXTS)

    file = tokenize_documents(
        tokenization.dataset(IterableDataset.from_generator(rows)), bpe, tmp_path / "out", processes=1
    )
    assert content(file) == ids(bpe, TEXTS)
