"""A hub on 127.0.0.1 that speaks the part of the Hugging Face API which downloads use, with faults on request.

The real client runs against it in a subprocess, because it reads HF_ENDPOINT when it is imported.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

COMMIT = "c0ffee" + "0" * 34
LFS_FROM_BYTES = 1000


class LocalHub:
    """Repositories as {(repo_type, id): {file: bytes}}, and which faults to show.

    cut       {file: n}: the next GET of it sends n bytes of its body and drops the connection.
    corrupt   files whose body is changed (same length), while the stated digest stays.
    gated     repositories that answer 403 with the code GatedRepo.
    plain     {path: bytes}: files outside of any repository, for sources given by URL.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.plain: dict[str, bytes] = {}
        self.head = COMMIT
        self.cut: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.gated: set[str] = set()
        self.log: list[tuple[str, str, str | None]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def downloads(self) -> Counter:
        """How often the body of each file was asked for."""
        bodies = (path for method, path, _ in self.log if method == "GET" and not path.startswith("api/"))
        return Counter(path.rsplit("/", 1)[-1] for path in bodies)

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                path = unquote(urlsplit(self.path).path).strip("/")
                hub.log.append((self.command, path, self.headers.get("Range")))
                if path == "":
                    return self.send(200, b"")
                if path in hub.plain:
                    return self.file(path.rsplit("/", 1)[-1], hub.plain[path], body)
                parts = path.split("/")
                if parts[0] == "api":
                    return self.info("/".join(parts[2:4]), parts[1].rstrip("s"), parts[4:])
                repo_type = "dataset" if parts[0] == "datasets" else "model"
                parts = parts[1:] if repo_type == "dataset" else parts
                repo, name = "/".join(parts[:2]), "/".join(parts[4:])
                if self.refused(repo, repo_type):
                    return None
                if name not in hub.repos[repo_type, repo]:
                    return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return self.file(name, hub.repos[repo_type, repo][name], body, {"X-Repo-Commit": hub.head})

            def refused(self, repo: str, repo_type: str) -> bool:
                if repo in hub.gated:
                    self.send(403, b"", {"X-Error-Code": "GatedRepo"})
                elif (repo_type, repo) not in hub.repos:
                    self.send(401, b"", {"X-Error-Code": "RepoNotFound"})
                else:
                    return False
                return True

            def info(self, repo: str, repo_type: str, call: list[str]) -> None:
                """/api/<type>s/<id>[/revision/<revision>] and /api/<type>s/<id>/tree/<revision>."""
                if self.refused(repo, repo_type):
                    return
                if call and call[1] not in ("main", hub.head):
                    self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                    return
                files = []
                for name, content in hub.repos[repo_type, repo].items():
                    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                    entry = {"type": "file", "path": name, "rfilename": name, "size": len(content)}
                    entry |= {"oid": blob, "blobId": blob}
                    if len(content) >= LFS_FROM_BYTES:
                        digest = hashlib.sha256(content).hexdigest()
                        entry["lfs"] = {"sha256": digest, "oid": digest, "size": len(content), "pointerSize": 130}
                    files.append(entry)
                answer = {"id": repo, "sha": hub.head, "siblings": files, "tags": [], "private": False}
                answer = files if call and call[0] == "tree" else answer
                self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

            def file(self, name: str, content: bytes, body: bool, headers: dict | None = None) -> None:
                etag = hashlib.sha256(content).hexdigest()
                if name in hub.corrupt:
                    content = bytes([content[0] ^ 1]) + content[1:]
                headers = {**(headers or {}), "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
                start, status = 0, 200
                wanted = self.headers.get("Range")
                if wanted and self.headers.get("If-Range", f'"{etag}"') == f'"{etag}"':
                    start, status = int(wanted.split("=")[1].split("-")[0]), 206
                    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                stop = hub.cut.pop(name, None) if body else None
                self.send(status, content[start:], headers, body, stop)

            def send(self, status: int, content: bytes, headers=None, body=True, stop: int | None = None) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body and self.command != "HEAD":
                    self.wfile.write(content[:stop])
                if stop is not None:
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.close()

        return Handler


@pytest.fixture
def local_hub():
    hub = LocalHub()
    yield hub
    hub.close()


@pytest.fixture
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`papers({"name": {...}})` writes toy/sources.yaml and makes it the only paper known in this process."""
    from shared import sources

    def write(entries: dict) -> Path:
        folder = tmp_path / "papers" / "toy"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sources.yaml").write_text(yaml.safe_dump({"sources": entries}), "utf-8")
        monkeypatch.setattr(sources, "ROOT", folder.parent)
        return folder.parent

    return write


@pytest.fixture
def client(tmp_path: Path, local_hub: LocalHub):
    """`client(code)` runs Python with the hub at `local_hub`, an empty cache and the toy papers; CompletedProcess."""

    def run(code: str, endpoint: str | None = None, **environment: str) -> subprocess.CompletedProcess:
        root = str(tmp_path / "papers")
        setup = f"import pathlib; from shared import hub, sources; sources.ROOT = pathlib.Path({root!r})\n"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "REPRO_"))}
        inherited |= {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": endpoint or local_hub.url,
            "REPRO_MIRROR": str(tmp_path / "mirror"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "COLUMNS": "200",
        }
        return subprocess.run(
            [sys.executable, "-c", setup + code],
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def bpe() -> Any:
    """A small byte-level BPE with RoBERTa's specials: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([Path(__file__).read_text("utf-8"), json.__doc__], trainer)
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)
