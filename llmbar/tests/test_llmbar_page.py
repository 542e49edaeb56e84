"""The page of commonly missed instances, the plots, and the paper's tables beside what was recorded."""

from copy import deepcopy

import pytest

from llmbar import page, paper_tables, plots, summary
from llmbar.data import Instance
from llmbar.findings import findings
from llmbar.replay import Rules, replay
from llmbar.reproduce import replay_all
from shared import InputError
from shared.paper import load_paper


@pytest.fixture
def wrong_judge(write_lines, vanilla_lines, house, strategies):
    """Right on everything but House/Natural[3], where both orders are wrong."""
    lines = deepcopy(vanilla_lines)
    for line in lines:
        if line["set"] == "House/Natural" and line["i"] == 3:
            line["stages"][0]["out"].reverse()
    return replay(write_lines(lines), house, Rules("Wrong", strategies))


def test_only_what_a_majority_gets_wrong_is_shown_hardest_first(wrong_judge, house):
    (missed,) = page.commonly_missed({"Wrong": wrong_judge}, house, families=("House",))
    assert missed.instance.id == "House/Natural[3]"
    assert missed.share == 0.0
    assert missed.winners["Wrong"]["Vanilla"] == ("2", "2")
    assert house["House/Natural"][3].label == 1


def test_texts_on_the_page_are_escaped_and_nothing_is_fetched():
    one = Instance("House/Natural", 0, "<script>alert(1)</script>", "<img src=x onerror=y>", "b", 1)
    missed = page.Missed(one, 10.0, {"<b>J": 10.0}, {"<b>J": {"Vanilla": ("1", None)}}, {"<b>J": ["<i>said</i>", "x"]})
    html = page.render([missed], ["<b>J"], total=1)
    for raw in ("<script", "<img", "<b>J", "<i>said"):
        assert raw not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "default-src 'none'" in html
    assert "http://" not in html and "https://" not in html
    assert "✓ –" in html


@pytest.mark.browser
def test_the_page_filters_by_set_without_a_script(tmp_path, house):
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    missed = [page.Missed(house[name][0], 10.0, {"J": 10.0}, {"J": {}}) for name in list(house)[:2]]
    path = tmp_path / "instances.html"
    path.write_text(page.render(missed, ["J"], total=2), encoding="utf-8")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options)
    try:
        driver.get(path.as_uri())
        articles = driver.find_elements(By.TAG_NAME, "article")
        assert [article.is_displayed() for article in articles] == [True, True]
        driver.find_element(By.CSS_SELECTOR, "label[for=pick2]").click()
        assert [article.is_displayed() for article in articles] == [False, True]
    finally:
        driver.quit()


def test_every_plot_can_be_drawn_for_judges_that_are_not_the_papers(wrong_judge, house):
    rows = {"Wrong": summary.rows(wrong_judge)}
    figures = [
        plots.accuracy_per_subset(rows, "House", "Vanilla"),
        plots.accuracy_against_agreement(rows, "House"),
        plots.first_position({"Wrong": wrong_judge}, "House"),
        plots.model_free({"longer": rows["Wrong"]["House"]["Vanilla"]}),
    ]
    bars = figures[0].axes[0].patches
    assert [bar.get_height() for bar in bars] == [95.0, 100.0, 100.0, 100.0, 100.0]
    for figure in figures:
        plots.plt.close(figure)


def test_a_table_the_paper_does_not_have_is_one_message():
    with pytest.raises(InputError, match="there is no table 4; there are 2, 3, 5"):
        paper_tables.compare_tables(load_paper("llmbar"), {}, [2, 4])


@pytest.mark.mirror
def test_recorded_answers_give_the_papers_tables_but_for_the_known_rows(released, recorded_folder):
    paper = load_paper("llmbar")
    recorded = replay_all(sorted(recorded_folder.glob("*.jsonl.gz")), released, seed=0)
    compared = paper_tables.compare_tables(paper, recorded.rows)
    differing = {one.row for one in compared if one.recorded is not None and not one.agrees}
    known = {f"LLaMA2 {name}" for name in ("Vanilla_NoRules", "CoT", "Swap", "Swap_CoT", "Vanilla_2shot")}
    known |= {"PaLM2 Swap", "Falcon Swap", "ChatGPT Rating"}
    assert differing == {row for row in known if row.split(" ")[0] in recorded.replays}
    table13 = [one for one in compared if one.table == "table13" and one.recorded is not None]
    assert all(one.agrees for one in table13)
    released_rows = {
        "LLaMA2 Vanilla_NoRules": (25.00, 72.83, 32.45, 74.98, 41.36, 74.78),
        "LLaMA2 CoT": (35.87, 52.17, 39.16, 50.83, 46.42, 54.07),
        "LLaMA2 Swap": (33.70, 56.52, 36.79, 57.70, 44.53, 59.96),
        "LLaMA2 Swap_CoT": (25.54, 75.00, 35.31, 71.19, 43.15, 71.95),
        "LLaMA2 Vanilla_2shot": (27.72, 72.83, 37.21, 71.73, 44.97, 72.19),
        "Falcon Swap": (46.74, 31.52, 47.66, 33.34, 51.23, 35.27),
    }
    columns = [f"{name}_{what}" for name in ("gptinst", "adv", "avg") for what in ("acc", "agr")]
    for row, values in released_rows.items():
        judge, strategy = row.split(" ")
        measured = recorded.rows[judge]["LLMBar"][strategy]
        assert tuple(round(measured[column], 2) for column in columns) == pytest.approx(values, abs=0.0051), row
    markdown = paper_tables.markdown(compared, {name: table["title"] for name, table in paper.tables.items()})
    assert "25.0 (25.5)" in markdown


@pytest.mark.mirror
def test_findings_are_the_known_ones(released, recorded_folder):
    recorded = replay_all(sorted(recorded_folder.glob("*.jsonl.gz")), released, seed=0)
    found = findings(recorded.rows, recorded.replays)
    gains = found["metrics_reference_gain"]["by_judge"]
    assert round(gains["GPT-4"], 1) == 9.7
    assert round(found["best_adversarial"]["GPT-4"]["value"], 1) == 82.8
    assert round(found["cot_gain"]["by_judge"]["ChatGPT"], 1) == 2.6
    figure5 = {
        "GPT-4": (72.7, 69.7, 66.7, 60.6),
        "ChatGPT": (57.6, 18.2, 59.8, 28.8),
        "LLaMA2": (56.1, 33.3, 59.1, 66.7),
    }
    for judge, values in figure5.items():
        rows = recorded.rows[judge]["Processed"]
        measured = [rows[s][f"faireval_{w}"] for s in ("Vanilla_NoRules", "Metrics_Reference") for w in ("acc", "agr")]
        assert tuple(round(value, 1) for value in measured) == values
