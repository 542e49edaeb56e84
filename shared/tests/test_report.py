"""The report: claims over all runs of a scale, README tables that name their run, a broken file stops nothing else."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from shared import InputError
from shared.report import BEGIN, END, build, markdown_table, rewrite_between_markers
from shared.results import Run, over_seeds

PAPER = """
paper: {name}
title: "A <b>tiny</b> paper & more"
url: https://example.org/paper
tables:
  t1: {{title: Scores, source: Table 1, metric: score, scale_by: 100, columns: [dev],
        rows: {{main: {{label: Ours, experiment: main, values: [80.0]}}, quoted: {{label: Other, values: [60.0]}}}}}}
measured:
  - {{label: "trained | <i>tiny</i>", metric: trained, paper: t1.main.dev, experiment: reproduce}}
claims:
  - {{id: helps, text: Training <helps>, laptop: 'm("trained") > m("untrained")', paper: 'm("score", "main") > 0.7'}}
  - {{id: wins, text: Wins, laptop: 'm("trained") > 0.9', paper: 'm("score", "main") > m("score", "other")'}}
  - {{id: gpu, text: Scales, laptop: {{not_testable: needs a GPU}}}}
"""
README = f"# Title\n\nbefore\n\n{BEGIN}\nSTALE\n{END}\n\nafter\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "paper.yaml").write_text(PAPER.format(name=name), encoding="utf-8")
        (tmp_path / name / "README.md").write_text(README, encoding="utf-8")
    monkeypatch.setattr("shared.paper.project_root", lambda: tmp_path)
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))
    return tmp_path


def run(paper="one", experiment="reproduce", scale="laptop", plot=False, **metrics):
    one = Run(paper, experiment, scale, config={"note": "<script>alert(1)</script>"}, seed=1)
    one.metrics = metrics
    if plot:
        one.save_plot("curve", Figure(figsize=(2, 1)), caption="Loss <falls>.", alt="A falling line.")
    return one.finish()


def report(root):
    problems = build(root, root / "runs", root / "runs/report.html")
    return problems, (root / "runs/report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects tags, ids, link targets and every address that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.targets, self.fetched = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "a":
            self.targets.append(attrs["href"])
        self.fetched += [attrs[key] for key in ("src", "srcset", "data") if key in attrs]
        if tag == "link":
            self.fetched.append(attrs["href"])


def test_the_page_shows_measured_beside_paper_with_every_number_linked_to_its_run(root):
    run(plot=True, trained=over_seeds([0.7, 0.72]), untrained=0.5)
    problems, text = report(root)
    assert problems == []
    page = Page(text)
    assert "71.00 ± 1.41" in text and "80.00" in text and "-9.00" in text
    assert "#run-one-laptop-reproduce" in page.targets
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.targets if target.startswith("#")} <= set(page.ids)
    assert "A falling line." in text


def test_the_page_fetches_nothing_and_runs_no_script(root):
    run(plot=True, trained=0.7, untrained=0.5)
    _, text = report(root)
    page = Page(text)
    assert page.fetched and all(address.startswith("data:") for address in page.fetched)
    assert "script" not in page.tags and "@import" not in text and "url(" not in text


def test_texts_from_files_are_escaped(root):
    run(plot=True, trained=0.7, untrained=0.5)
    _, text = report(root)
    for raw in ("<script>alert", "<b>tiny</b>", "<i>tiny</i>", "<falls>", "<helps>"):
        assert raw not in text
    assert "A &lt;b&gt;tiny&lt;/b&gt; paper &amp; more" in text


def test_each_readme_row_names_its_run_and_the_record_is_committed_beside_it(root):
    path = run(trained=0.7, untrained=0.5)
    report(root)
    text = (root / "one/README.md").read_text()
    assert text.startswith("# Title\n\nbefore") and text.endswith("\n\nafter\n") and "STALE" not in text
    table = [line for line in text.splitlines() if line.startswith("| trained")]
    link = "[reproduce](records/laptop/reproduce.json)"
    assert table == [f"| trained \\| &lt;i>tiny&lt;/i> (Table 1) | 70.00 | 80.00 | -10.00 | {link} |"]
    assert "| Training &lt;helps> | **holds** | trained = 0.7, untrained = 0.5 |" in text
    assert "| Wins | **does not hold** | trained = 0.7 |" in text
    assert "- Scales: needs a GPU." in text
    assert (root / "one/records/laptop/reproduce.json").read_bytes() == path.read_bytes()


def test_a_paper_without_results_says_what_to_run(root):
    run(trained=0.7, untrained=0.5)
    report(root)
    assert "Nothing has been measured yet: `make reproduce-two`" in (root / "two/README.md").read_text()


def test_the_records_of_a_fresh_clone_give_the_same_readme(root):
    path = run(trained=0.7, untrained=0.5)
    report(root)
    before = (root / "one/README.md").read_text()
    path.unlink()
    (root / "one/README.md").write_text(README)
    problems, page = report(root)
    assert problems == [] and (root / "one/README.md").read_text() == before
    assert "committed record" in page


def test_a_second_report_changes_no_readme(root):
    run(trained=0.7, untrained=0.5)
    report(root)
    before = (root / "one/README.md").stat().st_mtime_ns
    report(root)
    assert (root / "one/README.md").stat().st_mtime_ns == before


def test_a_run_that_no_row_rests_on_is_on_the_page_but_not_recorded(root):
    run(experiment="bench", seconds=3.0)
    _, text = report(root)
    assert "run-one-laptop-bench" in text
    assert not (root / "one/records").exists()


def test_claims_may_compare_two_runs_and_are_judged_anew(root):
    run(experiment="main", scale="paper", score=0.8)
    _, text = report(root)
    assert "experiment other has not been run" in text
    run(experiment="other", scale="paper", score=0.9)
    report(root)
    readme = (root / "one/README.md").read_text()
    assert "| Wins | **does not hold** | score of main = 0.8, score of other = 0.9 |" in readme
    assert "[main](records/paper/main.json), [other](records/paper/other.json)" in readme
    paper = root / "one/paper.yaml"
    paper.write_text(paper.read_text().replace('> m("score", "other")', '< m("score", "other")'))
    report(root)
    assert "| Wins | **holds** |" in (root / "one/README.md").read_text()


def test_quoted_baselines_are_not_shown_as_measured(root):
    run(experiment="main", scale="paper", score=0.8)
    _, text = report(root)
    assert "1 of 1 reproducible numbers measured" in text
    assert re.search(r"Other\s*<small class=\"soft\">quoted</small>", text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "cannot be read as results"),
        ("[]", "is not a mapping"),
        ('{"paper": "one"}', "lacks experiment, scale"),
        (
            '{"paper": "two", "experiment": "x", "scale": "laptop", "metrics": {}, "claims": [], "provenance": {}}',
            "says paper=two",
        ),
    ],
)  # fmt: skip
def test_a_broken_results_file_is_named_and_the_rest_is_reported(root, content, message):
    run(paper="two", trained=0.7, untrained=0.5)
    broken = root / "runs/one/laptop/broken/results.json"
    broken.parent.mkdir(parents=True)
    broken.write_text(content)
    problems, text = report(root)
    assert len(problems) == 1 and str(broken) in problems[0] and message in problems[0]
    assert "Left out of this report" in text and "run-two-laptop-reproduce" in text


def test_a_broken_paper_yaml_is_named_and_the_other_paper_is_reported(root):
    run(paper="two", trained=0.7, untrained=0.5)
    (root / "one/paper.yaml").write_text("tables: [")
    problems, text = report(root)
    assert len(problems) == 1 and "one/paper.yaml is not valid YAML" in problems[0]
    assert "run-two-laptop-reproduce" in text


@pytest.mark.parametrize("content", ["no markers", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}", BEGIN])
def test_a_readme_without_its_markers_is_left_alone_and_named(root, content):
    path = root / "one/README.md"
    path.write_text(content)
    with pytest.raises(InputError, match=r"one/README\.md needs one line"):
        rewrite_between_markers(path, "new")
    assert path.read_text() == content
    assert len(report(root)[0]) == 1


def test_a_plot_outside_the_runs_folder_is_not_embedded(root):
    path = run(plot=True, trained=0.7, untrained=0.5)
    result = json.loads(path.read_text())
    result["plots"][0]["file"] = "../../../../one/README.md"
    path.write_text(json.dumps(result))
    problems, text = report(root)
    assert len(problems) == 1 and "is listed in results.json but missing" in problems[0]
    assert "data:image/png" not in text


def test_the_root_readme_lists_what_was_decided(root):
    (root / "README.md").write_text(README)
    run(trained=0.7, untrained=0.5)
    report(root)
    line = "| one | Training &lt;helps> | holds | trained = 0.7, untrained = 0.5 | [reproduce](one/records/laptop/"
    assert line in (root / "README.md").read_text()


def test_markdown_cells_cannot_break_the_table():
    assert markdown_table(["a", "b"], [["x|y\nz", "<b>"]]) == ["| a | b |", "|---|---|", "| x\\|y z | &lt;b> |"]


def test_the_command_ends_with_status_2_where_something_was_left_out(root):
    command = [sys.executable, "-m", "shared.report", "--root", root, "--runs", root / "runs"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "report.html" in done.stdout
    (root / "one/README.md").write_text("no markers")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "one/README.md needs one line" in done.stderr and "Traceback" not in done.stderr
