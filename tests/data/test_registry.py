"""The registry: complete entries, known categories, names that are refused with the nearest one."""

import pytest

from sanflow.data.registry import categories, dataset_entry, load_registry
from sanflow.errors import ConfigError, DataError
from tests.helpers.miniatures import mvtec


def test_the_registered_data_sets_in_order_of_importance():
    assert list(load_registry()) == [
        "mvtec_ad",
        "photo_textures",
        "visa",
        "magnetic_tile",
        "btad",
        "mpdd",
        "kolektor_sdd",
        "mvtec_loco",
        "shanghaitech_campus",
    ]


@pytest.mark.parametrize("entry", load_registry().values(), ids=list(load_registry()))
def test_an_entry_says_where_from_under_what_licence_and_who_documents_it(entry):
    assert entry.licence
    assert entry.citation
    assert entry.homepage.startswith("https://")
    assert "/" in entry.documented_by.repository
    assert [bool(entry.mirrors), bool(entry.manual), entry.builtin].count(True) == 1
    assert all(mirror.startswith("https://") for mirror in entry.mirrors)
    if entry.mirrors:
        assert len(entry.sha256) == 64


def test_known_counts():
    """Totals that the data sets' papers state."""

    def totals(name):
        counts = load_registry()[name].categories.values()
        return tuple(sum(getattr(count, key) for count in counts) for key in ("train", "good", "defective"))

    assert totals("mvtec_ad") == (3629, 467, 1258)
    assert totals("visa") == (9621 - 962, 962, 1200)
    assert totals("btad") == (1799, 451, 290)
    assert totals("mpdd") == (888, 176, 282)
    assert totals("mvtec_loco") == (1772, 575, 993)
    assert sum(totals("kolektor_sdd")) == 399
    assert totals("magnetic_tile")[0] + totals("magnetic_tile")[1] == 952
    assert totals("magnetic_tile")[2] == 392


def test_categories_all_and_chosen(tmp_path):
    assert len(categories("mvtec_ad")) == 15
    assert categories("mvtec_ad", ["screw", "bottle"]) == ["screw", "bottle"]
    with pytest.raises(
        ConfigError, match=r"a category of mvtec_ad among bottle, .* but got 'scrw'\. Did you mean 'screw'"
    ):
        categories("mvtec_ad", ["scrw"])


def test_an_unknown_data_set_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"but got 'mvtec'\. Did you mean 'mvtec_ad'\? For a data set of your own"):
        dataset_entry("mvtec")


def test_a_folder_of_the_users_own(tmp_path):
    mvtec(tmp_path, "screw")
    mvtec(tmp_path, "nut")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.txt").write_text("no category")
    assert categories("mine", "all", "folder", tmp_path) == ["nut", "screw"]


def test_empty_and_misspelt_categories_are_told_where_all_are_asked_for(tmp_path):
    mvtec(tmp_path, "nut")
    (tmp_path / "cap").mkdir()
    (tmp_path / "pin/Train/good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"there is none in: cap, pin\. Complete or remove them, or list"):
        categories("mine", "all", "folder", tmp_path)
    assert categories("mine", ["nut"], "folder", tmp_path) == ["nut"]


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="needs `root`"):
        dataset_entry("mine", "folder")
    with pytest.raises(DataError, match=r"there is no such folder. Correct `root`"):
        dataset_entry("mine", "folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder there has train/good"):
        dataset_entry("mine", "folder", tmp_path)
    mvtec(tmp_path, "screw")
    with pytest.raises(DataError, match="looks like one category itself: give its parent folder"):
        dataset_entry("mine", "folder", tmp_path / "screw")


@pytest.mark.parametrize("text", ["a: {title: A}", "- a", "a: {title: [", "a: 3"])
def test_a_wrong_registry_is_refused(tmp_path, text):
    (tmp_path / "datasets.yaml").write_text(text)
    with pytest.raises(ConfigError, match="Expected data set entries in"):
        load_registry(tmp_path / "datasets.yaml")
