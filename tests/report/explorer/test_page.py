"""The explorer in headless Chromium: what a person does with the page, against values computed in Python."""

import time
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from sanflow.data.index import read_index
from sanflow.files import read_json, write_json
from sanflow.report.explorer import write_explorer
from tests.helpers import results as helpers
from tests.helpers.browser import errors_of, open_chromium, requests_of
from tests.helpers.results import draw_data_set, imagine_benchmark

pytestmark = pytest.mark.browser

# A folder's name may hold all but a slash; a label and a title may hold that too.
HOSTILE = '<img src=x onerror=document.title="owned"> "q" \'s\' Mütter & 螺母'
LABEL = 'SANFlow </script><script>document.title="owned"</script>'
CATEGORIES = (HOSTILE, "nut")
EXPERIMENTS = ("cflow-matched", "sanflow")  # in the order of the page


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """40 test images in two categories, two experiments, two seeds; a detector that makes mistakes."""
    top = tmp_path_factory.mktemp("explorer")
    root = draw_data_set(top / "data", CATEGORIES, n_good=8, n_defects=6)
    with pytest.MonkeyPatch.context() as patch:
        labelled = helpers.EXPERIMENTS["sanflow"] | {"label": LABEL}
        patch.setitem(helpers.EXPERIMENTS, "sanflow", labelled)
        folder = imagine_benchmark(top, categories=CATEGORIES, seeds=(0, 1), root=root, quality=1.6)
    outline = {
        "name": "forty",
        "title": f"Forty {LABEL}",
        "datasets": {"my_parts": list(CATEGORIES)},
        "experiments": [],
    }
    write_json(folder / "benchmark.json", outline)
    return folder


@pytest.fixture(scope="module")
def page(results):
    return write_explorer(results)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = open_chromium(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.quit()


@pytest.fixture
def visit(browser, page):
    """Open the page anew with a state in its address; after the test nothing may have gone wrong in it."""
    errors_of(browser), requests_of(browser)

    def open_page(**state):
        browser.get("about:blank")
        browser.get(page.as_uri() + ("#" + urlencode(state) if state else ""))
        wait_for(lambda: browser.execute_script("return document.querySelectorAll('#counts .tile').length") == 6)
        return browser

    yield open_page
    assert errors_of(browser) == []
    assert [url for url in requests_of(browser) if not url.startswith(("file:", "data:", "about:"))] == []
    assert browser.title != "owned"


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def tables(results, experiment="cflow-matched", seed=0, categories=CATEGORIES):
    """images.csv of all categories, with their place in the page and in their own category."""
    parts = []
    for number, category in enumerate(CATEGORIES):
        if category in categories:
            folder = results / "my_parts" / category / experiment / f"seed{seed}"
            table = pd.read_csv(folder / "images.csv").reset_index(names="i")
            threshold = read_json(folder / "metrics.json")["image_f1_threshold"]
            parts.append(table.assign(category=number, threshold=threshold, rank=rankdata(table.score)))
    return pd.concat(parts, ignore_index=True)


def names(table):
    return [f"{row.category}/{row.i}" for row in table.itertuples()]


def cells(browser):
    return browser.execute_script("return [...document.querySelectorAll('.cell')].map(cell => cell.dataset.image)")


def counts(browser):
    script = "return [...document.querySelectorAll('#counts .tile')].map(tile => tile.querySelector('b').textContent)"
    missed, alarm, found, passed, precision, recall = browser.execute_script(script)
    return [int(text.split()[1]) for text in (missed, alarm, found, passed)], precision, recall


def counted(table, threshold):
    """The same by Python."""
    flagged, defective = (table.score >= threshold).to_numpy(), (table.label == 1).to_numpy()
    numbers = [int(part.sum()) for part in (~flagged & defective, flagged & ~defective, flagged & defective)]
    percent = lambda part, whole: f"{100 * part / whole:.1f} %" if whole else "n/a"  # noqa: E731
    precision, recall = percent(numbers[2], flagged.sum()), percent(numbers[2], defective.sum())
    return [*numbers, int((~flagged & ~defective).sum())], precision, recall


def choose(browser, name, value):
    script = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.onchange(); return s.value"
    assert browser.execute_script(script, name, value) == value


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def text_of(browser, name):
    return browser.find_element("id", name).text


def test_top_shows_what_was_run_and_the_table(visit, results):
    browser = visit()
    assert text_of(browser, "title") == f"Forty {LABEL}"
    facts = text_of(browser, "facts")
    assert HOSTILE in facts
    assert "40 test images" in facts
    assert "0, 1" in facts
    best = [cell.text for cell in browser.find_elements("css selector", "#headline td strong")]
    means = {
        name: np.mean(
            [
                read_json(results / "my_parts" / category / name / f"seed{seed}" / "metrics.json")["image_auroc"]
                for category in CATEGORIES
                for seed in (0, 1)
            ]
        )
        for name in EXPERIMENTS
    }
    assert any(text.startswith(f"{100 * max(means.values()):.2f}") for text in best)
    assert LABEL in text_of(browser, "headline")
    assert browser.execute_script("return document.querySelectorAll('body img[src=x], main script').length") == 0


def test_filters(visit, results):
    browser = visit(sort="listed")
    everything = tables(results)
    assert cells(browser) == names(everything)
    choose(browser, "category", HOSTILE)
    wait_for(lambda: len(cells(browser)) == 20)
    assert cells(browser) == names(everything[everything.category == 0])
    choose(browser, "kind", "is:line")
    wait_for(lambda: len(cells(browser)) == 6)
    here = everything[(everything.category == 0) & (everything.defect_type == "line")]
    assert cells(browser) == names(here)
    choose(browser, "kind", "any")
    choose(browser, "outcome", "missed")
    expected = everything[(everything.category == 0) & (everything.label == 1)].query("score < threshold")
    wait_for(lambda: cells(browser) == names(expected))
    assert text_of(browser, "listing").startswith(f"{len(expected) or 'No'} image")


def test_each_category_is_judged_at_its_own_best_f1(visit, results):
    browser = visit()
    table = tables(results)
    missed = table.query("label == 1 and score < threshold")
    alarms = table.query("label == 0 and score >= threshold")
    numbers, _, _ = counts(browser)
    assert numbers[:2] == [len(missed), len(alarms)]
    assert sum(numbers) == 40
    # The worst mistakes come first.
    assert set(cells(browser)[: len(missed)]) == set(names(missed))
    assert "own best F1" in text_of(browser, "threshold-text")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("experiment", [0, 1])
def test_slider_counts_equal_python(visit, results, experiment, seed):
    browser = visit(category="nut", experiment=experiment, seed=seed)
    table = tables(results, EXPERIMENTS[experiment], seed, ("nut",))
    assert counts(browser) == counted(table, table.threshold[0])
    thresholds = [*np.unique(table.score), np.inf]
    slider = browser.find_element("id", "slider")
    assert int(slider.get_attribute("max")) == len(thresholds) - 1
    for place in (0, 3, len(thresholds) // 2, len(thresholds) - 2, len(thresholds) - 1):
        browser.execute_script("arguments[0].value = arguments[1]; arguments[0].oninput()", slider, place)
        wait_for(lambda place=place: counts(browser) == counted(table, thresholds[place]))
    browser.find_element("id", "best").click()
    wait_for(lambda: counts(browser) == counted(table, table.threshold[0]))


def test_slider_moves_by_keys_one_image_a_step(visit, results):
    from selenium.webdriver.common.keys import Keys

    browser = visit(category="nut")
    table = tables(results, categories=("nut",))
    slider = browser.find_element("id", "slider")
    thresholds = list(np.unique(table.score))
    slider.send_keys(Keys.ARROW_RIGHT)
    above = thresholds[thresholds.index(table.threshold[0]) + 1]
    wait_for(lambda: counts(browser) == counted(table, above))
    assert slider.get_attribute("aria-valuetext") == text_of(browser, "threshold-text")


def test_one_threshold_for_all_categories(visit, results):
    table = tables(results)
    threshold = float(np.sort(table.score)[25])
    browser = visit(threshold=repr(threshold))
    assert counts(browser) == counted(table, threshold)


def test_orders(visit, results):
    browser = visit(sort="highest", category="nut")
    table = tables(results, categories=("nut",))
    assert cells(browser) == names(table.sort_values("score", ascending=False))
    choose(browser, "sort", "lowest")
    wait_for(lambda: cells(browser) == names(table.sort_values("score")))
    choose(browser, "sort", "disagreement")
    other = tables(results, "sanflow", categories=("nut",))
    difference = ((table["rank"] - other["rank"]) / 19).abs()
    wait_for(lambda: cells(browser) == names(table.iloc[np.argsort(-difference, kind="stable")]))
    first = browser.find_element("css selector", ".cell").text
    assert f"ranked {round(100 * difference.max())} %" in first


def test_order_by_overlap(visit, results, page):
    """Overlaps are checked against the maps in test_build; here is their order."""
    browser = visit(sort="least-overlap", category="nut", kind="any")
    overlaps = browser.execute_script("return listed.map(item => item.overlap)")
    assert len(overlaps) == 12
    assert overlaps == sorted(overlaps)
    choose(browser, "sort", "most-overlap")
    choose(browser, "kind", "")
    wait_for(lambda: len(cells(browser)) == 20)
    overlaps = browser.execute_script("return listed.map(item => item.overlap)")
    assert overlaps[:12] == sorted(overlaps[:12], reverse=True)
    assert overlaps[12:] == [None] * 8, "good images have no overlap and come last"


def viewed(browser):
    """The address of the open image's photograph; None while the dialog is closed."""
    return browser.execute_script(
        "return document.getElementById('viewer').open"
        " ? document.querySelector('#panels img').src.split('/').slice(-2).join('/') : null"
    )


def test_a_click_opens_the_image_and_keys_step(visit, results):
    from selenium.webdriver.common.keys import Keys

    browser = visit(sort="highest")
    table = tables(results).sort_values("score", ascending=False, ignore_index=True)
    browser.find_elements("css selector", ".cell")[5].click()
    expected = [f"{row.category}/{row.i}.webp" for row in table.itertuples()]
    wait_for(lambda: viewed(browser) == expected[5])
    assert text_of(browser, "viewer-facts").startswith(table.image[5])
    assert text_of(browser, "viewer-title") == f"my_parts / {CATEGORIES[table.category[5]]}: {table.defect_type[5]}"
    headings = [panel.text.split("\n")[0] for panel in browser.find_elements("css selector", "#panels figcaption")]
    assert headings == ["Image", "Ground truth", "cflow-matched‡", f"{LABEL}‡"]
    assert f"score {float(f'{table.score[5]:.3g}'):g}," in text_of(browser, "panels")
    press(browser, Keys.ARROW_RIGHT)
    wait_for(lambda: viewed(browser) == expected[6])
    press(browser, Keys.ARROW_LEFT)
    wait_for(lambda: viewed(browser) == expected[5])
    press(browser, Keys.ARROW_LEFT)
    wait_for(lambda: viewed(browser) == expected[4])
    press(browser, Keys.ESCAPE)
    wait_for(lambda: viewed(browser) is None)
    wait_for(lambda: browser.switch_to.active_element.get_attribute("data-image") == expected[4].removesuffix(".webp"))


def test_keys_work_at_both_ends_of_the_list(visit, results):
    from selenium.webdriver.common.keys import Keys

    browser = visit(sort="listed", category="nut", image="1/18")
    wait_for(lambda: viewed(browser) == "1/18.webp")
    browser.find_element("id", "next").click()
    wait_for(lambda: viewed(browser) == "1/19.webp")
    assert not browser.find_element("id", "next").is_enabled()
    press(browser, Keys.ARROW_RIGHT)
    press(browser, Keys.ARROW_LEFT)
    wait_for(lambda: viewed(browser) == "1/18.webp")
    press(browser, Keys.ESCAPE)
    wait_for(lambda: viewed(browser) is None)


def test_zoom_and_outlines(visit, results):
    from selenium.webdriver.common.keys import Keys

    defective = int((read_index(results / "my_parts/nut").test.label == 1).to_numpy().argmax())
    browser = visit(image=f"1/{defective}")
    wait_for(lambda: viewed(browser) == f"1/{defective}.webp")

    def drawn():
        return browser.execute_script(
            "return [...document.querySelectorAll('#panels path.truth')].map(p => getComputedStyle(p).display)"
        )

    assert drawn() == ["inline"] * 3  # over the image and over both maps
    press(browser, "o")
    wait_for(lambda: drawn() == ["none"] * 3)
    press(browser, "+", "+", "+")
    scales = (
        "return [...document.querySelectorAll('.inner')].map(inner => new DOMMatrix(getComputedStyle(inner).transform))"
    )
    wait_for(lambda: text_of(browser, "zoom-text") == "300 %")
    assert [matrix["a"] for matrix in browser.execute_script(scales)] == [3] * 4
    before = [matrix["e"] for matrix in browser.execute_script(scales)]
    browser.execute_script("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', "
                           "{key: 'ArrowRight', shiftKey: true, bubbles: true}))")  # fmt: skip
    assert all(matrix["e"] < e for matrix, e in zip(browser.execute_script(scales), before, strict=True))
    assert viewed(browser) == f"1/{defective}.webp", "Shift with an arrow key does not step"
    press(browser, "0")
    wait_for(lambda: text_of(browser, "zoom-text") == "100 %")
    press(browser, Keys.ESCAPE)
    wait_for(lambda: viewed(browser) is None)


def test_the_address_survives_a_reload(visit, results):
    browser = visit()
    choose(browser, "category", HOSTILE)
    choose(browser, "experiment", "1")
    choose(browser, "seed", "1")
    choose(browser, "sort", "lowest")
    wait_for(lambda: len(cells(browser)) == 20)
    slider = browser.find_element("id", "slider")
    browser.execute_script("arguments[0].value = 7; arguments[0].oninput()", slider)
    table = tables(results, "sanflow", 1, (HOSTILE,))
    wait_for(lambda: counts(browser) == counted(table, np.unique(table.score)[7]))
    browser.find_elements("css selector", ".cell")[2].click()
    wait_for(lambda: viewed(browser) is not None)
    shown = (browser.current_url, cells(browser), counts(browser), viewed(browser))
    browser.refresh()
    wait_for(lambda: viewed(browser) == shown[3])
    assert (browser.current_url, cells(browser), counts(browser), viewed(browser)) == shown
    assert browser.find_element("id", "category").get_attribute("value") == HOSTILE


def test_a_changed_address_changes_the_view(visit):
    browser = visit(category="nut")
    browser.execute_script("location.hash = 'category=nut&kind=good'")
    wait_for(lambda: len(cells(browser)) == 8)
    browser.execute_script("location.hash = 'nonsense=1&category=gone&threshold=abc&image=9/9'")
    wait_for(lambda: len(cells(browser)) == 40)


def test_data_of_a_category_is_loaded_when_it_is_shown(visit, browser):
    visit(category="nut")
    loaded = [url.rsplit("/", 1)[1] for url in requests_of(browser) if "/data/" in url]
    assert sorted(loaded) == ["benchmark.js", "category-1.js"]
    browser.find_element("css selector", ".cell").click()
    wait_for(lambda: viewed(browser) is not None)
    assert [url.rsplit("/", 1)[1] for url in requests_of(browser) if "/data/" in url] == ["outlines-1.js"]


def test_maps_are_coloured_by_the_page(visit):
    """A picture from the disk cannot be read by a script, so the screenshot is looked at."""
    import io

    from PIL import Image

    browser = visit(picture="map", category="nut", sort="highest")
    image = browser.find_element("css selector", ".cell img")
    wait_for(lambda: browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image) == 64)
    shot = np.asarray(Image.open(io.BytesIO(image.screenshot_as_png)).convert("RGB"), int)
    brightest = shot.reshape(-1, 3)[shot.sum(axis=2).argmax()]
    darkest = shot.reshape(-1, 3)[shot.sum(axis=2).argmin()]
    assert brightest[0] > 200 > brightest[2]  # orange or yellow
    assert darkest.max() < 60


@pytest.mark.parametrize("width", [1500, 420])
def test_nothing_is_wider_than_the_window(visit, browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        visit(image="0/15")
        wait_for(lambda: viewed(browser) is not None)
        wide = "return [document.documentElement.scrollWidth, document.getElementById('viewer').scrollWidth]"
        assert max(browser.execute_script(wide)) <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_controls_have_names(visit):
    browser = visit(image="0/15")
    wait_for(lambda: viewed(browser) is not None)
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('button, input, select')].filter(control => !(control.textContent.trim()"
        " || control.getAttribute('aria-label') || control.labels?.length)).map(control => control.id)"
    )
    assert nameless == []


def test_a_lost_file_is_named(visit, page, browser):
    lost = page.parent / "data/category-0.js"
    kept = lost.rename(lost.with_suffix(".away"))
    try:
        browser.get("about:blank")
        browser.get(page.as_uri())
        wait_for(lambda: "Expected the file data/category-0.js" in text_of(browser, "listing"))
    finally:
        kept.rename(lost)
    errors_of(browser)  # that the file is not found
