"""The report of the demo opens as one file in a real browser, without a connection, and shows its tables."""

import re
import shutil

import pytest

from sanflow.files import read_json

pytestmark = pytest.mark.browser

QUIET = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no name resolves, so what is missing from the file is an error
]


@pytest.fixture(scope="module")
def report(root):
    path = root / "results/demo/report.html"
    if not path.exists():
        pytest.skip("needs results/demo/report.html: run `make demo` first")
    return path


@pytest.fixture
def browser(tmp_path):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in [*QUIET, "--window-size=1500,1000", f"--user-data-dir={tmp_path}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.implicitly_wait(20)
    yield opened
    opened.quit()


def errors_of(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_report_lists_every_kind_of_result(browser, report):
    browser.get(report.as_uri())
    menu = browser.find_element("tag name", "body").text
    assert all(entry in menu for entry in ["Workflow", "Statistics", "Figures", "Tables"])
    browser.find_element("xpath", "//*[normalize-space(text())='Tables']").click()
    assert "image auroc" in browser.find_element("xpath", "//*[normalize-space(text())='image auroc']").text
    assert errors_of(browser) == []


def test_a_table_of_the_report_shows_the_measured_numbers(browser, report, root):
    browser.get(report.as_uri())
    browser.find_element("xpath", "//*[normalize-space(text())='Tables']").click()
    row = browser.find_element("xpath", "//tr[.//*[normalize-space(text())='overview']]")
    row.find_element("xpath", ".//a").click()
    frame = browser.find_element("tag name", "iframe")
    browser.switch_to.frame(frame)
    text = browser.find_element("tag name", "table").text
    category = root / "results/demo/photo_textures"
    means = {
        experiment: sum(read_json(path)["image_auroc"] for path in category.glob(f"*/{experiment}/seed0/metrics.json"))
        / 3
        for experiment in ("sanflow", "cflow-matched")
    }
    shown = {float(number) for number in re.findall(r"\d+\.\d+", text)}
    for experiment, mean in means.items():
        assert any(abs(number - 100 * mean) < 0.051 for number in shown), (experiment, mean, text)
    assert errors_of(browser) == []
