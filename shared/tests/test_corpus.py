"""The offline corpus on a small site-packages made by the tests, and once, bounded, on the real environment."""

import csv
import io
import os
import random
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

from shared import InputError, corpus, extraction
from shared.duplicates import JACCARD, NearDuplicates, jaccard, shingles, signatures, words

BODY = """It walks over the {thing} in the order in which they were added and keeps what the caller asked for.

    The result is a list with one entry for each of the {thing} that was seen, and it is empty if there was none
    at all, which is not an error but what happens to a {thing} that nobody has filled yet."""


def module(name: str, thing: str) -> str:
    return f'''"""Work on {thing} of the kind that {name} has.

    {BODY.format(thing=thing)}
"""

class Keeper:
    def keep(self, what):
        """Keep the {thing} that matter to {name} most. {BODY.format(thing=f"{thing} {name} keeper")}
        """
        return what

    if True:
        def below_a_condition(self):
            """Drop everything that {name} has. A {name} without {thing} is as good as new, and that is the reason why
            this is offered at all: nobody wants to read through old {thing} in the hope to find one that is of use.
            """

def short():
    """Too short. To be of use."""
'''


class Site:
    """A folder of installed packages, written as pip would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, files: dict, version="1.0", description="", urls=(), shuffle=0) -> None:
        info = f"{name}-{version}.dist-info"
        headers = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", f"Summary: What {name} is for."]
        headers += [*urls, "Description-Content-Type: text/markdown"]
        metadata = "\n".join([*headers, "", description])
        contents = {**files, f"{info}/METADATA": metadata}
        rows = [[path, "", ""] for path in [*contents, f"{info}/RECORD"]]
        random.Random(shuffle).shuffle(rows)
        record = io.StringIO()
        csv.writer(record, lineterminator="\n").writerows(rows)
        for path, content in {**contents, f"{info}/RECORD": record.getvalue()}.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())


THINGS = ["maps", "trees", "queues", "rivers", "letters", "planets", "bridges", "kettles"]


def fill(folder: Path, shuffle: int = 0) -> Site:
    site = Site(folder)
    for number, thing in enumerate(THINGS):
        name = f"pack{number}"
        files = {
            f"{name}/__init__.py": module(name, thing),
            f"{name}/tests/test_it.py": module(f"{name} test", thing),
            f"{name}/broken.py": f'def half(:\n    """{BODY}"""\n',
            f"{name}/latin.py": b'# -*- coding: latin-1 -*-\n"""caf\xe9"""\n',
            f"{name}/gone.py": "",
        }
        urls = [f"Project-URL: Homepage, https://{name}.example.org/"] if number % 2 else []
        badge = "[![badge](https://x/y.svg)](https://x)"
        description = f"# {name}\n\n{badge}\n\n{BODY.format(thing=f'{name} and {thing}')}"
        site.install(name, files, urls=urls, description=description, shuffle=shuffle)
        (folder / f"{name}/gone.py").unlink()
    copies = {"vendoring/_vendor/pack0.py": module("pack0", "maps"), "vendoring/copy.py": module("pack1", "trees")}
    site.install("vendoring", copies)
    guide = f"# How to keep things\n\nThings are kept. {BODY.format(thing='guides')}\n"
    site.install("manual", {"manual/guide.md": guide, "manual/.agent/SKILL.md": guide})
    page = "<html><script>var x;</script><h1>Pages</h1><p>A page is read from top to bottom. Whoever opens it in a "
    page += "browser sees the headings first, and then as much of the rest as there is time for on that day.</p></html>"
    site.install("page", {"page/index.html": page})
    return site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return fill(tmp_path / "site").folder


def test_documents_say_what_they_are_and_where_they_come_from(site, tmp_path):
    found = corpus.documents(path=[str(site)], cache=tmp_path / "cache")
    by_title = {document.title: document for document in found}
    keep = by_title["pack3.Keeper.keep"]
    assert keep.summary == "Keep the rivers that matter to pack3 most."
    assert keep.text.startswith("It walks over the rivers pack3 keeper") and "Keep the rivers" not in keep.text
    assert (keep.kind, keep.package) == ("docstring", "pack3")
    assert keep.origin == "https://pack3.example.org#pack3.Keeper.keep"
    assert by_title["pack2.Keeper.keep"].origin == "pack2 1.0 pack2/__init__.py"
    assert "pack3.Keeper.below_a_condition" in by_title and "pack3.short" not in by_title
    assert by_title["pack3"].summary in ("What pack3 is for.", "Work on rivers of the kind that pack3 has.")
    assert by_title["How to keep things"].kind == "docs"
    assert by_title["Pages"].text and "var x" not in by_title["Pages"].text
    assert {document.kind for document in found} == {"docs", "docstring", "description"}
    assert not any(str(site) in part for document in found for part in astuple(document)), "no machine paths"


def test_descriptions_lose_badges_and_keep_prose(site, tmp_path):
    found = corpus.documents(["description"], path=[str(site)], cache=tmp_path)
    assert {document.package for document in found} == {f"pack{number}" for number in range(len(THINGS))}
    for document in found:
        assert document.summary == f"What {document.title} is for."
        assert "badge" not in document.text and "svg" not in document.text
        assert document.text.startswith("It walks over")


def test_tests_vendored_copies_and_broken_files_are_left_out(site, tmp_path):
    found = corpus.documents(path=[str(site)], cache=tmp_path)
    assert not any("test" in document.title or "broken" in document.title for document in found)
    assert not any("_vendor" in document.title for document in found)
    twice = [document for document in found if document.title in ("pack1.Keeper.keep", "vendoring.copy.Keeper.keep")]
    assert len(twice) == 1, "the copy outside of a vendor folder is a near-duplicate"


def test_source_files_are_whole_and_decoded_as_they_declare(site, tmp_path):
    found = corpus.documents(["source"], path=[str(site)], cache=tmp_path)
    text = (site / "pack4/__init__.py").read_text()
    assert next(document for document in found if document.title == "pack4").text == text


def test_a_limit_gives_the_beginning_of_the_whole(site, tmp_path):
    everything = corpus.documents(path=[str(site)], cache=tmp_path)
    for count in (1, 5, len(everything), 10_000):
        assert corpus.documents(path=[str(site)], cache=tmp_path, max_documents=count) == everything[:count]
    limited = corpus.documents(path=[str(site)], cache=tmp_path, max_bytes=5000)
    sizes = [corpus.size_in_bytes(document) for document in everything]
    assert limited == everything[: len(limited)] and 0 < len(limited) < len(everything)
    assert sum(sizes[: len(limited)]) <= 5000 < sum(sizes[: len(limited) + 1])


def test_the_order_depends_on_nothing_but_the_packages(site, tmp_path):
    """Another hash seed, locale, file order in RECORD, creation order on disk and worker task size: the same corpus."""
    other = fill(tmp_path / "elsewhere", shuffle=1).folder
    code = (
        "import hashlib, sys; from shared import corpus; corpus.UNITS_PER_TASK = int(sys.argv[2])\n"
        "print(hashlib.sha256(repr(corpus.documents(path=[sys.argv[1]], cache=sys.argv[3])).encode()).hexdigest())"
    )
    digests = set()
    for seed, locale, folder, units in (("1", "C", site, "96"), ("2", "C.UTF-8", other, "3")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": locale, "PYTHONUTF8": "0"}
        call = [sys.executable, "-c", code, str(folder), units, str(tmp_path / f"cache{seed}")]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


def test_the_cache_is_used_rebuilt_when_corrupt_and_keyed_by_versions(site, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = corpus.documents(path=[str(site)], cache=cache)
    (file,) = cache.iterdir()
    made = []
    real = extraction.extract
    monkeypatch.setattr(extraction, "extract", lambda task: made.append(task) or real(task))
    assert corpus.documents(path=[str(site)], cache=cache) == first and not made
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content.replace(b"kettles", b"kettIes", 1), b"{}\n[]"):
        file.write_bytes(damaged)
        made.clear()
        assert corpus.documents(path=[str(site)], cache=cache) == first and made
        assert file.read_bytes() == content
    Site(site).install("newer", {"newer.py": module("newer", "lamps")}, version="2.0")
    assert len(corpus.documents(path=[str(site)], cache=cache)) > len(first)
    assert len(list(cache.glob("*.jsonl"))) == 2 and len(list(cache.iterdir())) == 2


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(InputError, match="kinds has 'docstrings'"):
        corpus.documents(["docstrings"], cache=tmp_path)
    with pytest.raises(InputError, match="max_documents=0"):
        corpus.documents(max_documents=0, cache=tmp_path)


def test_a_package_without_files_or_on_a_missing_path_is_no_error(tmp_path):
    assert corpus.documents(path=[str(tmp_path / "nothing.zip")], cache=tmp_path / "cache") == []
    info = tmp_path / "site" / "bare-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bare\nVersion: 1\n")
    (tmp_path / "site" / "nameless-1.dist-info").mkdir()
    assert corpus.documents(path=[str(tmp_path / "site")], cache=tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("text", "summary", "rest"),
    [
        ("Do it. Then more.\n\nRest.", "Do it.", "Then more.\n\nRest."),
        ("A title\nover two lines\n\nRest.", "A title over two lines", "Rest."),
        ("Use e.g. This or that.\n\nRest.", "Use e.g. This or that.", "Rest."),
        ("Since 1.2 it works, i.e. Always.\n\nX", "Since 1.2 it works, i.e. Always.", "X"),
        ("Only this", "Only this", ""),
    ],
)
def test_a_summary_is_the_first_sentence(text, summary, rest):
    assert extraction.split_summary(text) == (summary, rest)


def test_prose_is_told_from_code_and_other_languages():
    prose = BODY.format(thing="things")
    table = "0.1 0.2 0.3 | 44 55 66 | 0x1f 0x2f 0x3f |" * 10
    german = "Die Liste enthält jeden Eintrag, den der Aufrufer haben will, und bleibt leer, wenn es keinen gab. " * 3
    assert [extraction.is_prose(text, words(text)) for text in (prose, table, german)] == [True, False, False]


def paraphrase(text_words: list[str], share: float, rng: random.Random) -> list[str]:
    """The words with a share of them replaced, which breaks three shingles each."""
    return [f"other{rng.randrange(10**6)}" if rng.random() < share else word for word in text_words]


def test_planted_near_duplicates_are_found_and_others_are_kept():
    """400 texts with planted copies: the decision is Jaccard >= 0.7, but for the 1.2 % that banding may miss at 0.7."""
    rng = random.Random(7)
    vocabulary = [f"word{number}" for number in range(3000)]
    decisions = []
    for _ in range(400):
        original = rng.choices(vocabulary, k=rng.randint(25, 400))
        copy = paraphrase(original, rng.choice([0.0, 0.01, 0.03, 0.08, 0.2, 0.5]), rng)
        known = NearDuplicates()
        keys = signatures([original, copy])
        assert known.is_new(" ".join(original), keys[0])
        similarity = jaccard(shingles(original), shingles(copy))
        decisions.append((similarity, known.is_new(" ".join(copy), keys[1])))
    assert all(is_new for similarity, is_new in decisions if similarity < JACCARD), "never by chance"
    above = [is_new for similarity, is_new in decisions if similarity >= JACCARD]
    assert len(above) > 100 and sum(above) <= 0.02 * len(above)
    assert not any(is_new for similarity, is_new in decisions if similarity > 0.85)


def test_signatures_do_not_depend_on_what_is_signed_beside_them():
    texts = [words(BODY.format(thing=thing)) for thing in THINGS]
    together = signatures(texts)
    assert all((signatures([text])[0] == row).all() for text, row in zip(texts, together, strict=True))
    assert signatures([]).shape == (0, together.shape[1])


def test_similarity_of_sets_is_the_share_of_common_shingles():
    first, second = shingles(["a", "b", "c", "d", "e"]), shingles(["a", "b", "c", "d", "x"])
    assert jaccard(first, second) == pytest.approx(2 / 4)
    assert jaccard(first, first) == 1


def test_the_real_environment_gives_prose_with_origins(tmp_path):
    found = corpus.documents(["docs", "description"], max_documents=150, cache=tmp_path)
    assert len(found) == 150
    assert sum(document.origin.startswith("http") for document in found) > 75
    home = str(Path.home())
    for document in found:
        assert len(words(document.text)) >= extraction.MIN_WORDS and document.title and document.package
        assert home not in document.origin and sys.prefix not in document.origin


def test_the_standard_library_is_read_by_two_processes(tmp_path, monkeypatch):
    """Docstrings of stdlib modules alone (no packages), with small tasks so that workers really share them."""
    monkeypatch.setattr(corpus, "installed", lambda path=None: {})
    monkeypatch.setattr(corpus, "UNITS_PER_TASK", 24)
    found = corpus.documents(["docstring"], max_documents=200, cache=tmp_path / "two")
    monkeypatch.setattr(corpus, "PROCESSES", 1)
    assert corpus.documents(["docstring"], max_documents=200, cache=tmp_path / "one") == found
    assert {document.package for document in found} == {"python"}
    assert any(document.origin.startswith("https://docs.python.org/3.") for document in found)
