"""The search page in a real browser: asking, opening, going back, with the mouse and from the keyboard."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from shared.testing import answering

pytestmark = pytest.mark.browser

OWNED = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
PAPERS = [
    {"title": f"Listwise {OWNED}", "abstract": f"A model reranks passages {OWNED}.", "citations": [1, 2]},
    {"title": "Dense retrieval", "abstract": "Vectors rank passages by cosine.", "citations": [0]},
    {"title": "Poetry", "abstract": "Rhyme survives translation. " + "La la la. " * 60 + "Metre survives."},
    {"title": "x" * 150, "abstract": ""},
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from litsearch.index import make_index
    from litsearch.library import open_library
    from litsearch.search_page import SearchPage

    folder = tmp_path_factory.mktemp("browser")
    (folder / "papers.jsonl").write_text("".join(json.dumps(paper) + "\n" for paper in PAPERS))
    options = ["data=own", f"data.corpus={folder}/papers.jsonl", f"index={folder}/index"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(Path(__file__).resolve().parents[1] / "configs"), version_base="1.3"):
        cfg = hydra.compose("index", [*options, "retriever.processes=1", "retriever.cache=false"])
    library = open_library(make_index(cfg, Console(quiet=True)))
    with answering(SearchPage(library, ("127.0.0.1", 0))) as server:
        yield server.url


@pytest.fixture
def page(browser, url):
    """The page, loaded, at a desktop's width."""
    resize(browser, 1280)
    browser.get(url)
    wait(browser, lambda: "4 papers" in "".join(texts(browser, "#about")))
    browser.get_log("browser")
    return browser


def resize(browser, width: int, dark: bool = False) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def wait(browser, condition) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda _: condition())


def texts(browser, selector: str) -> list[str]:
    """What is shown of all elements, in one step: the page may replace them between two."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter((element) => element.checkVisibility()).map((element) => element.innerText)",
        selector,
    )


def click(browser, selector: str) -> None:
    browser.find_element("css selector", selector).click()


def press(browser, *keys: str) -> None:
    browser.switch_to.active_element.send_keys(*keys)


def ask(browser, question: str, titles: list[str]) -> None:
    field = browser.find_element("id", "query")
    field.clear()
    field.send_keys(question, "\n")
    wait(browser, lambda: texts(browser, "#results .title") == titles)


def test_a_question_shows_papers_with_their_matches_marked(page, tmp_path):
    ask(page, "ranking of passages", ["Dense retrieval", PAPERS[0]["title"]])
    assert texts(page, "#results mark") == ["rank passages", "passages"]
    scores = [float(score.split()[1]) for score in texts(page, ".score")]
    assert scores == sorted(scores, reverse=True) and texts(page, ".rank") == ["1", "2"]
    assert texts(page, "#status")[0].startswith("2 papers in ")
    for name, width, dark in (("desktop", 1280, False), ("phone", 390, False), ("dark", 1280, True)):
        resize(page, width, dark)
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth"), name
        assert page.save_screenshot(str(tmp_path / f"{name}.png"))


def test_markup_in_papers_and_questions_is_shown_as_text(page, url):
    page.get(f"{url}?q=listwise+{OWNED}".replace(" ", "%20"))
    wait(page, lambda: len(texts(page, "#results .title")) == 1)
    click(page, "#results .title a")
    wait(page, lambda: texts(page, "#paper h2") == [PAPERS[0]["title"]])
    assert page.title.endswith("· Paper search")
    assert not page.find_elements("css selector", "main script, main img")


def test_a_stem_marks_the_word_as_it_stands(page):
    ask(page, "reranking", [PAPERS[0]["title"]])
    assert texts(page, "#results mark") == ["reranks"]


def test_long_abstracts_are_folded(page):
    ask(page, "metre", ["Poetry"])
    folded = texts(page, "#results .text")[0]
    assert folded.startswith("… ") and folded.endswith("Metre survives.") and len(folded.split()) <= 46
    click(page, ".whole")
    assert texts(page, "#results .text") == [PAPERS[2]["abstract"]]
    click(page, ".whole")
    assert texts(page, "#results .text") == [folded]


def test_citations_lead_from_paper_to_paper_and_back(page):
    ask(page, "cosine", ["Dense retrieval"])
    assert texts(page, ".meta .link") == ["Cites 1", "Cited by 1"]
    click(page, ".meta .link")
    wait(page, lambda: texts(page, ".cited a") == [PAPERS[0]["title"]])
    click(page, ".cited a")
    wait(page, lambda: texts(page, "#paper h3") == ["Cites 2", "Cited by 1"])
    assert texts(page, "#paper .papers a") == ["Dense retrieval", "Poetry", "Dense retrieval"]
    page.back()
    wait(page, lambda: texts(page, "#results .title") == ["Dense retrieval"])
    assert page.current_url.endswith("?q=cosine")


def test_it_works_from_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.execute_script("document.activeElement.blur()")
    press(page, "/")
    press(page, "passages", Keys.ENTER)
    wait(page, lambda: len(texts(page, "#results .title")) == 2)
    press(page, Keys.ARROW_DOWN)
    press(page, "j")
    assert page.execute_script("return document.activeElement.closest('.hit') === document.querySelectorAll('.hit')[1]")
    press(page, Keys.ENTER)
    wait(page, lambda: len(texts(page, "#paper h2")) == 1)
    press(page, Keys.ESCAPE)
    wait(page, lambda: len(texts(page, "#results .title")) == 2)


def test_nothing_found_and_what_went_wrong_are_said(page, url):
    ask(page, "zebra", [])
    wait(page, lambda: texts(page, "#notice strong") == ["Nothing found for “zebra”"])
    page.get(f"{url}?paper=77")
    wait(page, lambda: texts(page, "#paper .notice p") == ["corpusid 77 is not in the corpus of 4 papers"])
    page.get_log("browser")


def test_an_example_starts_a_search(page):
    assert texts(page, "#examples a")[1] == "Dense retrieval"
    click(page, "#examples li:nth-child(2) a")
    wait(page, lambda: texts(page, "#results .title") == ["Dense retrieval"])
    assert texts(page, "#first") == [] and page.current_url.endswith("?q=Dense+retrieval")


def test_every_control_has_a_name_and_the_console_stays_silent(page):
    ask(page, "cosine", ["Dense retrieval"])
    for control in page.find_elements("css selector", "input, button, select, a"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    assert page.get_log("browser") == []
