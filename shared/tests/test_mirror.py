"""`python -m shared.hub mirror` and the hub step of `locate`, with the real client against a hub on 127.0.0.1."""

import hashlib
import io
import json
import re
import socket
import tarfile
from pathlib import Path

import pytest

from shared import InputError, hub, transfer
from shared.mirror import command_line
from shared.sources import Source

BIG = bytes(range(256)) * 400  # 102,400 bytes: stored as a large file, stated by sha256
MODEL = {"config.json": b'{"model_type": "bert"}', "vocab.txt": b"a\nb\n", "modeling.py": b"raise SystemExit"}
DATA = {"kind": "files", "repo": "org/data", "repo_type": "dataset", "licence": "CC0-1.0"}


def tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def mirror(client, *names: str, **environment):
    return client(f"hub.main(['mirror', 'toy', *{names!r}])", **environment)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def toy(papers, local_hub):
    """A paper with one source of each kind, and a hub that has them."""
    local_hub.repos["dataset", "org/data"] = {
        "big.txt": BIG,
        "small.txt": b"one\ntwo\nthree\n",
        "all.tar": tar({"down/STS/a.txt": b"a", "down/STS/deep/b.txt": b"b", "down/other/c.txt": b"c"}),
    }
    local_hub.repos["model", "org/model"] = {
        **MODEL,
        "model.safetensors": BIG,
        "pytorch_model.bin": BIG,
        "onnx/m.json": b"{}",
    }
    local_hub.repos["model", "org/old"] = {**MODEL, "pytorch_model.bin": BIG}
    local_hub.plain["release/v1.txt"] = BIG
    old = ["*.json", "*.safetensors", "vocab.txt", "pytorch_model.bin"]
    sts = {"mirror": "S/down", "unpack": {"**/STS": "STS"}}
    papers(
        {
            "big": {**DATA, "files": "big.txt", "mirror": "data/big.txt"},
            "head": {"kind": "files", "files": "h", "mirror": "head.txt", "excerpt": {"of": "small", "lines": 2}},
            "small": {**DATA, "files": "small.txt", "mirror": "small.txt"},
            "senteval": {**DATA, "kind": "archive", "files": "all.tar", **sts},
            "bert": {"kind": "model", "repo": "org/model"},
            "old": {"kind": "model", "repo": "org/old", "files": old},
            "release": {"kind": "url", "url": f"{local_hub.url}/release/v1.txt", "mirror": "v1.txt"},
        }
    )
    return local_hub


def test_mirror_brings_every_kind_of_source_and_records_commit_and_digests(toy, client, tmp_path):
    done = mirror(client)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "mirror" / "toy"
    assert (root / "data/big.txt").read_bytes() == BIG == (root / "v1.txt").read_bytes()
    assert (root / "head.txt").read_bytes() == b"one\ntwo\n"
    assert sorted(p.relative_to(root / "S").as_posix() for p in (root / "S").rglob("*.txt")) == [
        "down/STS/a.txt",
        "down/STS/deep/b.txt",
    ]
    assert sorted(p.name for p in (root / "models/bert").iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    assert sorted(p.name for p in (root / "models/old").iterdir()) == ["config.json", "pytorch_model.bin", "vocab.txt"]
    record = json.loads((root / "MIRROR.json").read_text())["sources"]
    assert record["big"]["commit"] == toy.head
    assert record["big"]["files"] == {"data/big.txt": {"bytes": len(BIG), "sha256": sha(BIG)}}
    assert not (root / ".partial").exists()
    assert "licence: CC0-1.0" in done.stdout and "org/data@main" in done.stdout
    assert re.search(r"big +102 kB", done.stdout) and re.search(r"bert +102 kB", done.stdout)


def test_an_optional_source_is_fetched_only_when_it_is_named(local_hub, papers, client, tmp_path):
    local_hub.repos["dataset", "org/data"] = {"big.txt": BIG, "small.txt": b"one\n"}
    papers(
        {
            "big": {**DATA, "files": "big.txt", "mirror": "big.txt", "optional": True},
            "small": {**DATA, "files": "small.txt", "mirror": "small.txt"},
        }
    )
    done = mirror(client)
    assert done.returncode == 0, done.stderr
    assert "left out, unless you name them: big" in done.stdout
    assert local_hub.downloads() == {"small.txt": 1}
    assert mirror(client, "big").returncode == 0
    assert (tmp_path / "mirror/toy/big.txt").read_bytes() == BIG


def test_a_second_run_downloads_nothing(toy, client):
    again = "from shared.mirror import command_line\nassert command_line(['mirror', 'toy']) == 0\n"
    done = client(again * 2)
    assert done.returncode == 0, done.stderr
    wanted = ("big.txt", "small.txt", "all.tar", "v1.txt", "config.json", "model.safetensors")
    assert [toy.downloads()[name] for name in wanted] == [1, 1, 1, 1, 2, 1], "two models have a config.json"


def test_locate_uses_the_mirror_without_a_hub(toy, client, tmp_path):
    assert mirror(client, "bert", "senteval").returncode == 0
    code = "print(hub.locate('toy', 'senteval')); print(hub.model_path('org/model', 'toy'))"
    done = client(code, endpoint="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    root = tmp_path / "mirror" / "toy"
    assert done.stdout.split() == [str(root / "S/down"), str(root / "models/bert")], done.stderr


def test_locate_downloads_into_the_cache_and_then_works_offline(toy, client, tmp_path):
    code = "print(hub.locate('toy', 'big')); print(hub.locate('toy', 'senteval')); print(hub.model_path('bert', 'toy'))"
    online = client(code)
    assert online.returncode == 0, online.stderr
    paths = [Path(line) for line in online.stdout.split()]
    assert paths[0].read_bytes() == BIG and (paths[1] / "STS/a.txt").read_bytes() == b"a"
    assert all(path.is_relative_to(tmp_path / "hf") for path in paths)
    assert not (paths[2] / "modeling.py").exists() and not (paths[2] / "pytorch_model.bin").exists()
    offline = client(code, endpoint="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout, offline.stderr


def test_a_hub_id_that_is_no_source_can_be_named(toy, client):
    toy.repos["model", "other/model"] = toy.repos["model", "org/model"]
    assert mirror(client, "other/model").returncode == 0
    done = client("print(hub.model_path('other/model', 'toy'))", HF_HUB_OFFLINE="1")
    assert done.stdout.strip().endswith("toy/models/other/model"), done.stderr


def test_a_model_without_safetensors_is_refused_unless_the_source_says_so(toy, client):
    toy.repos["model", "org/bin"] = toy.repos["model", "org/old"]
    tries = "for name in ('org/none', 'org/bin', 'org/old'):\n try: hub.model_path(name, 'toy')\n"
    done = client(tries + " except ValueError as error: print(error)")
    missing, refused = done.stdout.splitlines()
    assert "org/none does not exist" in missing and "org/bin has no safetensors" in refused


def test_a_connection_cut_in_mid_file_is_resumed(toy, client, tmp_path):
    toy.cut = {"big.txt": 70_000, "v1.txt": 30_000}
    smaller_chunks = "from huggingface_hub import constants\nconstants.DOWNLOAD_CHUNK_SIZE = 10_000\n"
    done = client(smaller_chunks + "hub.main(['mirror', 'toy', 'big', 'release'])")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mirror/toy/data/big.txt").read_bytes() == BIG
    ranges = {path.rsplit("/")[-1]: wanted for method, path, wanted in toy.log if method == "GET" and wanted}
    assert ranges == {"big.txt": "bytes=70000-", "v1.txt": "bytes=30000-"}


def test_a_killed_run_goes_on_where_it_stopped(toy, client, tmp_path):
    """The first run dies inside the second file's body; what it had is not asked for again."""
    toy.cut = {"v1.txt": 50_000}
    code = "from shared import transfer\ntransfer.log.warning = lambda *a: __import__('os')._exit(9)\n"
    dead = client(code + "hub.main(['mirror', 'toy', 'big', 'release'])")
    assert dead.returncode == 9
    assert not (tmp_path / "mirror/toy/v1.txt").exists()
    assert mirror(client, "big", "release").returncode == 0
    assert (tmp_path / "mirror/toy/v1.txt").read_bytes() == BIG
    assert toy.downloads()["big.txt"] == 1
    assert ("GET", "release/v1.txt", "bytes=50000-") in toy.log


def test_a_download_that_is_not_what_the_hub_states_is_refused(toy, client, tmp_path):
    """The large file by its sha256, the small one by its git blob id; both are downloaded anew afterwards."""
    toy.corrupt = {"big.txt", "small.txt"}
    done = mirror(client, "big", "small")
    assert done.returncode == 2
    assert f"big.txt as downloaded: expected sha256 {sha(BIG)}, found" in done.stderr
    assert "small.txt as downloaded: expected git blob id" in done.stderr
    root = tmp_path / "mirror/toy"
    assert not (root / "data/big.txt").exists() and not (root / "small.txt").exists()
    toy.corrupt = set()
    assert mirror(client, "big", "small").returncode == 0


def test_a_digest_in_sources_yaml_is_held_to(toy, client, papers, tmp_path):
    papers({"big": {**DATA, "files": "big.txt", "mirror": "b.txt", "sha256": {"big.txt": "0" * 64}}})
    done = mirror(client)
    assert done.returncode == 2 and f"expected sha256 {'0' * 64}, found {sha(BIG)}" in done.stderr
    assert not (tmp_path / "mirror/toy/b.txt").exists()


def test_an_unpacked_file_with_another_digest_leaves_nothing_behind(toy, client, papers, tmp_path):
    entry = {**DATA, "kind": "archive", "files": "all.tar", "mirror": "S", "unpack": {"down/STS": "STS"}}
    papers({"senteval": {**entry, "sha256": {"STS/a.txt": "0" * 64}}})
    done = mirror(client)
    assert done.returncode == 2 and f"expected sha256 {'0' * 64}, found {sha(b'a')}" in done.stderr
    assert not (tmp_path / "mirror/toy/S").exists()


def test_a_branch_is_trusted_on_first_use_and_held_afterwards(toy, client, tmp_path):
    assert mirror(client, "small").returncode == 0
    (tmp_path / "mirror/toy/small.txt").unlink()
    held = toy.head
    toy.head, toy.repos["dataset", "org/data"]["small.txt"] = "decade" + "0" * 34, b"new\n"
    done = mirror(client, "small")
    assert done.returncode == 2 and "no revision" in done.stderr, "the old commit is what was asked for"
    toy.head = held
    assert "differs from MIRROR.json" in mirror(client, "small").stderr


def test_a_file_changed_in_the_mirror_is_refused_everywhere(toy, client, tmp_path):
    assert mirror(client, "big", "small").returncode == 0
    path = tmp_path / "mirror/toy/data/big.txt"
    path.write_bytes(BIG[:-1] + b"!")
    for code in ("hub.locate('toy', 'big')", "hub.main(['mirror', 'toy', 'big'])", "hub.main(['check', 'toy', 'big'])"):
        done = client(code)
        assert done.returncode != 0
        assert sha(BIG) in done.stderr + done.stdout and sha(path.read_bytes()) in done.stderr + done.stdout
    assert path.read_bytes().endswith(b"!"), "never overwritten"
    assert client("hub.locate('toy', 'small')").returncode == 0


def test_gated_and_missing_repositories_say_what_to_do_and_the_rest_is_fetched(toy, client, tmp_path):
    toy.gated = {"org/model"}
    del toy.repos["model", "org/old"]
    done = mirror(client, "bert", "old", "small", HF_TOKEN="hf_secret")
    assert done.returncode == 2
    assert "accept its licence" in done.stderr and "does not exist, or is private" in done.stderr
    assert (tmp_path / "mirror/toy/small.txt").is_file()
    assert "hf_secret" not in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_a_file_that_the_repository_lacks_is_named(toy, client, papers):
    papers({"x": {**DATA, "files": "nope.txt"}})
    done = mirror(client)
    assert done.returncode == 2 and "no file 'nope.txt'" in done.stderr


def test_a_url_that_is_not_there_is_one_message(toy, client, papers):
    papers({"x": {"kind": "url", "url": f"{toy.url}/org/data/none"}})
    done = mirror(client)
    assert done.returncode == 2 and "answered 40" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "mirror_folder", "said"),
    [
        (["mirror", "nopaper"], "/tmp/x", "unknown paper 'nopaper'"),
        (["mirror", "../toy"], "/tmp/x", "unknown paper '../toy'"),
        (["mirror", "toy", "nosource"], "/tmp/x", "no source 'nosource'"),
        (["mirror", "toy"], "", "set REPRO_MIRROR"),
        (["check", "toy"], "", "set REPRO_MIRROR"),
    ],
)
def test_bad_commands_are_one_message_and_status_2(toy, monkeypatch, capsys, arguments, mirror_folder, said):
    monkeypatch.setenv("REPRO_MIRROR", mirror_folder)
    assert command_line(arguments) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("error: ") and err.count("\n") == 1 and not out


def test_another_place_can_be_given(toy, client, tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    assert client(f"hub.main(['mirror', 'toy', 'small', '--to', {elsewhere!r}])", REPRO_MIRROR="").returncode == 0
    assert (tmp_path / "elsewhere/toy/small.txt").is_file()


def test_an_unreachable_hub_is_told_within_seconds(toy, client):
    done = mirror(client, "small", endpoint="http://127.0.0.1:9")
    assert done.returncode == 2 and "not reachable" in done.stderr


def test_a_host_that_accepts_but_never_answers_costs_no_more_than_the_probe(monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reason = hub.unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/x")
    assert "no answer" in reason or "timed out" in reason


def symlink(target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "members",
    [
        {"STS/../../evil.txt": b"x"},
        {"/STS/evil.txt": b"x"},
        {"STS/link": symlink("/etc/passwd")},
        {"STS/ok.txt": b"x", "unwanted/../../evil.txt": b"x"},
        {"C:/STS/evil.txt": b"x"},
    ],
)
def test_an_archive_that_reaches_out_of_its_folder_is_refused_whole(tmp_path, members):
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar(members))
    wanted = Source("toy", "a", "archive", ("a",), unpack={"STS": "STS"})
    with pytest.raises(InputError, match="refused"):
        transfer.unpack(archive, wanted, tmp_path / "box" / "out")
    assert not (tmp_path / "evil.txt").exists() and not (tmp_path / "box" / "evil.txt").exists()


def test_an_archive_without_what_is_wanted_names_what_it_has(tmp_path):
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar({"top/x.txt": b"x"}))
    with pytest.raises(InputError, match="at its top are top"):
        transfer.unpack(archive, Source("toy", "a", "archive", ("a",), unpack={"STS": "STS"}), tmp_path / "out")
    archive.write_bytes(b"not a tar")
    with pytest.raises(InputError, match="cannot be unpacked"):
        transfer.unpack(archive, Source("toy", "a", "archive", ("a",), unpack={"STS": "STS"}), tmp_path / "out2")
