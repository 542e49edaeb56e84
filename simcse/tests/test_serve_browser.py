"""The page in a real browser, on a real server and encoder: a person types a sentence and sees its neighbours."""

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.browser

SENTENCES = [
    "A man is playing a guitar on stage.",
    "Two dogs run across a green field.",
    "The stock market fell sharply on Monday.",
    "A woman slices an onion in the kitchen.",
    "The chef prepares dinner <script>document.title = 'owned'</script><img src=x onerror=alert(1)> for the guests.",
    "He is riding his bike to school.",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server process; it has to end cleanly when interrupted."""
    file = tmp_path_factory.mktemp("served") / "sentences.txt"
    file.write_text("\n".join(SENTENCES) + "\n")
    command = [sys.executable, "-u", "-m", "simcse.serve", "model=minilm", f"sentences={file}", "port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield next(line for line in process.stdout if "serving on" in line).split("serving on ")[1].split()[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


@pytest.fixture
def page(browser, url):
    """The page, loaded, at a desktop's width."""
    resize(browser, 1000)
    browser.get(url)
    wait(browser, lambda: "6 sentences" in text(browser, "#about"))
    return browser


def resize(browser, width: int, dark: bool = False) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def wait(browser, condition) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda _: condition())


def text(browser, selector: str) -> str:
    return browser.find_element("css selector", selector).text


def texts(browser, selector: str) -> list[str]:
    # In one step: the page may replace its results between two.
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText)", selector
    )


def search(browser, query: str, first: str) -> None:
    """Type a query and wait until its nearest neighbour is `first`."""
    field = browser.find_element("id", "query")
    field.clear()
    field.send_keys(query)
    wait(browser, lambda: texts(browser, ".hit .sentence")[:1] == [first])


def slide(browser, name: str, value: float) -> None:
    browser.execute_script(
        "const slider = document.getElementById(arguments[0]);"
        "slider.value = arguments[1]; slider.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def test_typing_a_sentence_shows_its_neighbours_in_order(page, tmp_path):
    slide(page, "threshold", -1)
    search(page, "Someone makes music", first=SENTENCES[0])
    assert sorted(texts(page, ".hit .sentence")) == sorted(SENTENCES)
    scores = [float(score) for score in texts(page, ".score")]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.3 > scores[1]
    track = page.find_element("css selector", ".track").size["width"]

    def bars_show(scores: list[float]) -> bool:
        widths = [bar.size["width"] / track for bar in page.find_elements("css selector", ".bar")]
        return all(abs(width - max(score, 0)) < 0.02 for width, score in zip(widths, scores, strict=True))

    wait(page, lambda: bars_show(scores))
    assert "by cosine" in text(page, "#status")
    for name, width, dark in (("wide", 1000, False), ("narrow", 360, False), ("dark", 1000, True)):
        resize(page, width, dark)
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth"), (
            f"{name} scrolls sideways"
        )
        assert page.save_screenshot(str(tmp_path / f"{name}.png"))


def test_markup_in_a_sentence_is_shown_as_text(page):
    search(page, "cooking a meal", first=SENTENCES[4])
    assert page.title == "Sentence search"
    assert not page.find_elements("css selector", "#results script, #results img")


def test_the_sliders_bound_the_neighbours(page):
    search(page, "an animal", first=SENTENCES[1])
    slide(page, "threshold", -1)
    wait(page, lambda: len(texts(page, ".hit")) == 6)
    slide(page, "topk", 3)
    wait(page, lambda: len(texts(page, ".hit")) == 3)
    slide(page, "threshold", 0.95)
    wait(page, lambda: text(page, "#status").startswith("Nothing has a cosine of 0.95 or more"))
    assert texts(page, ".hit") == []


def test_it_works_from_the_keyboard_and_from_a_link(page, url):
    from selenium.webdriver.common.keys import Keys

    page.get(f"{url}?q=bicycle")
    wait(page, lambda: texts(page, ".hit .sentence")[:1] == [SENTENCES[5]])
    page.execute_script("document.activeElement.blur()")
    page.find_element("css selector", "body").send_keys("/")
    assert page.switch_to.active_element.get_attribute("id") == "query"
    page.switch_to.active_element.send_keys("share prices go down", Keys.ENTER)
    wait(page, lambda: texts(page, ".hit .sentence")[:1] == [SENTENCES[2]])
    assert page.current_url.endswith("?q=share+prices+go+down")


def test_choosing_an_example_searches_for_it(page):
    page.find_element("css selector", "#examples button").click()
    wait(page, lambda: texts(page, ".score")[:1] == ["1.000"])
    assert texts(page, ".hit .sentence")[0] == SENTENCES[0]
    assert not page.find_element("id", "start").is_displayed()


def test_every_control_has_a_name_and_the_console_stays_silent(page):
    search(page, "an animal", first=SENTENCES[1])
    for control in page.find_elements("css selector", "input, button"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    assert page.get_log("browser") == []
