"""The report of the demo opens as one file in a real browser, without a connection, and shows its tables."""

import re

import pytest

from sanflow.files import read_json
from tests.helpers.browser import errors_of, open_chromium

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(root):
    path = root / "results/demo/report.html"
    if not path.exists():
        pytest.skip("needs results/demo/report.html: run `make demo` first")
    return path


@pytest.fixture
def browser(tmp_path):
    opened = open_chromium(tmp_path)
    opened.implicitly_wait(20)
    yield opened
    opened.quit()


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


def test_the_report_opens_on_what_was_run_and_the_headline_table(browser, report):
    browser.get(report.as_uri())
    text = browser.find_element("tag name", "body").text
    assert "Three photographed textures with painted defects" in text
    assert "Headline metrics" in text
    browser.set_window_size(1500, 400)  # the text is taller
    title = browser.find_element("xpath", "//strong[contains(text(), 'Three photographed textures')]")
    assert title.rect["y"] >= 0
    link = browser.find_element("link text", "the explorer").get_attribute("href")
    assert link == (report.parent / "explorer/index.html").as_uri()
    assert errors_of(browser) == []
