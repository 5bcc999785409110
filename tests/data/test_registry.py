"""The registry: complete entries, known categories, names that are refused with the nearest one."""

import os

import pytest

from sanflow.data.index import build_index
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
        "mvtec_ad_2",
        "kolektor_sdd2",
        "elpv",
    ]


@pytest.mark.parametrize("entry", load_registry().values(), ids=list(load_registry()))
def test_an_entry_says_where_from_under_what_licence_and_who_documents_it(entry):
    assert entry.licence
    assert entry.citation
    assert entry.homepage.startswith("https://")
    assert "/" in entry.documented_by.repository
    assert [bool(entry.mirrors), bool(entry.manual), entry.builtin, bool(entry.package)].count(True) == 1
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
    assert totals("kolektor_sdd2") == (2331 - 246, 1004 - 110, 110)
    assert (totals("elpv")[0] + totals("elpv")[1], totals("elpv")[2]) == (1508, 715)


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
    with pytest.raises(DataError, match=r"there is none in: cap, pin\. Complete them, or list"):
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


def test_names_of_categories_are_composed(tmp_path):
    decomposed, composed = "e\N{COMBINING ACUTE ACCENT}crou", "\N{LATIN SMALL LETTER E WITH ACUTE}crou"
    mvtec(tmp_path, decomposed)
    assert categories("mine", "all", "folder", tmp_path) == [composed]
    assert categories("mine", [decomposed], "folder", tmp_path) == [composed]
    for asked in (composed, decomposed):
        index = build_index("mine", asked, tmp_path, kind="folder")
        assert index.category == composed
        assert set(index.table.image.str.split("/").str[0]) == {decomposed}  # as the file system has it
    mvtec(tmp_path, composed)
    with pytest.raises(DataError, match=r"these look the same: 'e\\u0301crou' and '\\xe9crou' \(other code points"):
        categories("mine", "all", "folder", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a{b}", r"'a\{b\}' becomes a folder name: it may not be empty, begin with '\.' or hold"),
        (".hidden", r"'\.hidden' becomes a folder name"),
        ("a\nb", r"'a\\x0ab' becomes a folder name: the name holds control characters\. Rename it"),
        (os.fsdecode(b"a\xb0"), r"'a\\xb0' becomes a folder name: the name is not UTF-8\. Rename it"),
    ],
)
def test_all_checks_names_as_a_list_does(tmp_path, name, message):
    mvtec(tmp_path, "nut")
    mvtec(tmp_path, name)
    with pytest.raises(DataError, match=message):
        categories("mine", "all", "folder", tmp_path)
    assert categories("mine", ["nut"], "folder", tmp_path) == ["nut"]


@pytest.mark.parametrize("name", ["-x", "a b", "--help", "a#b", "001", "yes", "ä"])
def test_other_names_of_categories_work(tmp_path, name):
    mvtec(tmp_path, name)
    assert categories("mine", "all", "folder", tmp_path) == [name]
    assert list(build_index("mine", name, tmp_path, kind="folder").test.defect_pixels) == [0, 0, 30, 30]


def test_a_part_of_a_registered_data_set_is_enough(tmp_path):
    mvtec(tmp_path / "MVTec", "screw")  # not the first category
    assert categories("mvtec_ad", ["screw"], root=tmp_path) == ["screw"]
    assert len(build_index("mvtec_ad", "screw", tmp_path, check_counts=False).train) == 3
    with pytest.raises(
        DataError, match=r"but it does not have bottle, cable.*Choose of those.*`categories: \[screw\]`"
    ):
        categories("mvtec_ad", "all", root=tmp_path)
    with pytest.raises(DataError, match=r"It looks like one category itself: give its parent folder, .*MVTec\."):
        categories("mvtec_ad", ["screw"], root=tmp_path / "MVTec/screw")
