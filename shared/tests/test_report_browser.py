"""The page in a real browser: a silent console, nothing fetched, tables there, no sideways scrolling on a phone."""

import json
import shutil

import pytest
from matplotlib.figure import Figure

from shared.report import build
from shared.results import Run, over_seeds

pytestmark = pytest.mark.browser

PAPER = """
paper: one
title: A tiny paper with a rather long title, so that it has to wrap on a small screen
tables:
  t1: {title: Scores, source: Table 1, metric: "sts.{column}", scale_by: 100,
       columns: [STS12, STS13, STS14, STS15, STS16, STS-B, SICK-R, Avg],
       rows: {main: {label: Ours, experiment: main, values: [70.1, 71.2, 72.3, 73.4, 74.5, 75.6, 76.7, 73.4]}}}
measured:
  - {label: trained, metric: trained, paper: t1.main.Avg, experiment: reproduce}
claims:
  - {id: helps, text: Training helps, laptop: 'm("trained") > m("untrained")'}
  - {id: wins, text: Wins, laptop: 'm("a.metric.with_a_rather_long_name.that_has_to_wrap_somewhere_on_a_phone") > 0.9'}
  - {id: gpu, text: Scales, laptop: {not_testable: needs a GPU}}
"""
NAME = "that_has_to_wrap_somewhere_on_a_phone"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    (root / "one").mkdir()
    (root / "one/paper.yaml").write_text(PAPER)
    (root / "one/README.md").write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.paper.project_root", lambda: root)
        patch.setenv("REPRO_RUNS", str(root / "runs"))
        run = Run("one", "reproduce", "laptop", config={"path": "x" * 300})
        run.metrics = {"trained": over_seeds([0.7, 0.72]), "untrained": 0.5}
        run.metrics["a"] = {"metric": {"with_a_rather_long_name": {NAME: 0.5}}}
        run.save_plot("curve", Figure(figsize=(8, 3)), caption="Loss falls.", alt="A falling line.")
        run.finish()
        run = Run("one", "main", "paper")
        run.metrics["sts"] = dict.fromkeys(("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R", "Avg"), 0.7)
        run.finish()
        assert build(root, root / "runs", root / "runs/report.html") == []
    return root / "runs/report.html"


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def requested(browser):
    """The addresses the page asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def test_nothing_is_fetched_and_the_console_is_silent(browser, page):
    browser.get(page.as_uri())
    addresses = requested(browser)
    assert page.as_uri() in addresses
    assert [url for url in addresses if not url.startswith(("data:", page.as_uri()))] == []
    assert browser.get_log("browser") == []


def test_claims_tables_and_plots_are_there(browser, page):
    from selenium.webdriver.common.by import By

    browser.get(page.as_uri())
    badges = [badge.text for badge in browser.find_elements(By.CSS_SELECTOR, ".claims .badge")]
    assert "✓ holds" in badges and "✗ does not hold" in badges
    measured = browser.find_element(By.CSS_SELECTOR, "table.measured tbody tr").text
    assert "71.00 ± 1.41" in measured and "73.40" in measured and "-2.40" in measured
    cells = browser.find_elements(By.CSS_SELECTOR, "table.grid tr.ours td")
    assert len(cells) == 8 and "70.00" in cells[0].text and "-0.10" in cells[0].text
    image = browser.find_element(By.CSS_SELECTOR, "figure img")
    assert image.get_attribute("alt") == "A falling line."
    browser.execute_script("arguments[0].scrollIntoView()", image)
    assert browser.execute_script("return arguments[0].decode().then(() => arguments[0].naturalWidth)", image) > 300


def test_a_number_leads_to_its_runs_provenance(browser, page):
    from selenium.webdriver.common.by import By

    browser.get(page.as_uri())
    browser.find_element(By.CSS_SELECTOR, "table.measured tbody a").click()
    assert browser.current_url.endswith("#run-one-laptop-reproduce")
    run = browser.find_element(By.ID, "run-one-laptop-reproduce")
    run.find_element(By.XPATH, ".//summary[contains(., 'Provenance')]").click()
    assert "seed" in run.text and "hardware" in run.text and "versions" in run.text


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1200, "dark")])
def test_the_page_fits_its_window_in_light_and_dark(browser, page, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    channels = (
        browser.execute_script("return getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")
    )
    assert (int(channels[0]) < 60) == (scheme == "dark")
