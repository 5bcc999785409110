"""A data set described in one CSV file: any layout of folders, every fault with its line."""

import pytest

from sanflow.data.content import category_digest
from sanflow.data.images import load_masks
from sanflow.data.index import build_index, read_index, write_index
from sanflow.data.parts import parts_of
from sanflow.data.registry import categories
from sanflow.errors import ConfigError, DataError
from tests.helpers.miniatures import image, mask

HEAD = "image,split,label,mask,defect_type,group,category"


@pytest.fixture
def table(tmp_path):
    """Two categories in one folder without any layout; masks of one of them."""
    for i in range(10):
        image(tmp_path / f"lot/{i}.png", seed=i)
    mask(tmp_path / "drawn/6.png")
    mask(tmp_path / "drawn/7.png", box=(0, 0, 2, 2))
    path = tmp_path / "list.csv"
    path.write_text(
        "\n".join(
            [
                HEAD,
                "lot/0.png,train,good,,,night,nut",
                "lot/1.png,train,0,,good,day,nut",
                "lot/2.png,validation,0,,,day,nut",
                "lot/3.png,test,0,,,day,nut",
                "lot/6.png,test,1,drawn/6.png,crack,day,nut",
                "lot/7.png,test,defective,drawn/7.png,,night,nut",
                "lot/4.png,train,0,,,,bolt",
                "lot/5.png,test,0,,,,bolt",
                "lot/8.png,test,1,,,,bolt",
            ]
        )
    )
    return path


def test_rows_of_a_list(table, tmp_path):
    assert categories("mine", "all", "list", table) == ["nut", "bolt"]
    index = build_index("mine", "nut", table, kind="list")
    assert index.root == tmp_path
    columns = ["split", "label", "defect_type", "image", "mask", "defect_pixels", "group"]
    assert index.table[columns].to_numpy().tolist() == [
        ["train", 0, "good", "lot/0.png", "", 0, "night"],
        ["train", 0, "good", "lot/1.png", "", 0, "day"],
        ["validation", 0, "good", "lot/2.png", "", 0, "day"],
        ["test", 0, "good", "lot/3.png", "", 0, "day"],
        ["test", 1, "crack", "lot/6.png", "drawn/6.png", 30, "day"],
        ["test", 1, "defective", "lot/7.png", "drawn/7.png", 4, "night"],
    ]
    write_index(index, tmp_path / "out/index.csv")
    again = read_index(tmp_path / "out")
    assert again.table.equals(index.table)
    assert [int(mask_HW.sum()) for mask_HW in load_masks(again)] == [0, 30, 4]
    bolt = build_index("mine", "bolt", table, kind="list")
    assert not bolt.knows_pixels
    assert "group" not in bolt.table


def test_without_a_column_of_categories_the_data_set_is_the_category(table):
    table.write_text("image,split,label\nlot/0.png,train,0\nlot/1.png,test,0\n")
    assert categories("mine", "all", "list", table) == ["mine"]
    assert len(build_index("mine", "mine", table, kind="list").table) == 2


def test_every_fault_has_its_line(table):
    lines = [
        "lot/0.png,train,0,,,,nut",  # 11
        ",test,0,,,,nut",
        "lot/9.png,tests,0,,,,nut",
        "lot/9.png,test,2,,,,nut",
        "lot/9.png,train,1,,,,nut",
        "lot/9.png,test,1,drawn/6.png,good,,nut",
        "lot/9.png,test,0,drawn/6.png,,,nut",
        "lot/10.png,test,0,,,,nut",
    ]
    table.write_text(table.read_text() + "\n" + "\n".join(lines))
    with pytest.raises(DataError) as caught:
        build_index("mine", "nut", table, kind="list")
    message = str(caught.value)
    for fault in (
        "list.csv, line 11: lot/0.png is also in line 2",
        "list.csv, line 12: expected a path in the column image, but it is empty",
        "list.csv, line 13: expected train, validation, test in the column split, but got 'tests'",
        "list.csv, line 14: expected 0, good, 1, defective in the column label, but got '2'",
        "list.csv, line 15: lot/9.png is defective, but only test images may be",
        "list.csv, line 16: the label '1' contradicts the defect type 'good'",
        "drawn/6.png: 30 defective pixels, but masks of good images are not used",
        "Expected an image at",
    ):
        assert fault in message
    assert "has 8 faults" in message


def test_a_defect_without_a_mask_among_others_with_masks(table):
    table.write_text(table.read_text() + "\nlot/9.png,test,1,,,,nut")
    with pytest.raises(DataError, match=r"list.csv, line 11: no mask in the column mask"):
        build_index("mine", "nut", table, kind="list")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image;split;label\n", r"separated by commas in .*list.csv, but got image;split;label\."),
        ("image,split\n", r"Expected the columns image, split, label, .* but got image, split\."),
        ("image,split,label,masks\n", r"but got image, split, label, masks\. Did you mean 'mask'\?"),
        ("", r"but got none"),
        ("image,split,label\n", r"Expected one line per image in .*list.csv, but it has none"),
        ("image,split,label\na.png,train,0,x\n", r"Expected 3 cells in line 2 of .*list.csv, but got more"),
        ("image,split,label,category\na.png,train,0,a{b\n", r"list.csv, line 2: 'a\{b' becomes a folder name"),
    ],
)
def test_a_list_that_is_none(table, text, message):
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        categories("mine", "all", "list", table)


def test_a_missing_list_and_an_unknown_category(table, tmp_path):
    with pytest.raises(DataError, match=r"Expected a list of images at .*nowhere.csv, a CSV file in UTF-8, but got"):
        categories("mine", "all", "list", tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match="needs `root`, the CSV file"):
        categories("mine", "all", "list")
    with pytest.raises(ConfigError, match="a category of mine among nut, bolt, but got 'screw'"):
        categories("mine", ["screw"], "list", table)


def test_the_files_of_a_list_count_by_content(table, tmp_path):
    memo = tmp_path / "state/content.json"
    before = category_digest(table, "nut", memo, dataset="mine")
    image(tmp_path / "lot/8.png", seed=88)  # of the other category
    assert category_digest(table, "nut", memo, dataset="mine") == before
    mask(tmp_path / "drawn/6.png", box=(1, 1, 3, 3))
    after = category_digest(table, "nut", memo, dataset="mine")
    assert after != before
    table.write_text(table.read_text().replace("night", "evening"))
    assert category_digest(table, "nut", memo, dataset="mine") != after


def test_a_column_of_parts(table, tmp_path):
    table.write_text(
        "image,split,label,part\nlot/0.png,train,0,a\nlot/1.png,train,0,a\nlot/2.png,train,0,\nlot/3.png,test,0,b\n"
    )
    index = build_index("mine", "mine", table, kind="list")
    assert index.table.part.tolist() == ["a", "a", "", "b"]
    assert parts_of(index.table).tolist() == ["a", "a", "lot/2.png", "b"]
    write_index(index, tmp_path / "out/index.csv")
    assert read_index(tmp_path / "out").table.equals(index.table)
    with pytest.raises(DataError, match=r"lot/0.png: its part 'a' is known without a pattern; expected no `part_pat"):
        build_index("mine", "mine", table, kind="list", part_pattern=r"\d")


def test_a_part_is_in_one_split_only(table):
    table.write_text(
        "image,split,label,part\nlot/0.png,train,0,a\nlot/1.png,train,0,b\nlot/2.png,validation,0,a\nlot/3.png,test,0,a\n"
    )
    with pytest.raises(DataError, match="has 1 fault") as caught:
        build_index("mine", "mine", table, kind="list")
    expected = (
        "part 'a': expected all its photographs in one split, but got lot/0.png (train) and lot/2.png (validation) "
        "and lot/3.png (test)"
    )
    assert expected in str(caught.value)
