"""Names: one form for one word, and each that cannot be used is refused with its own sentence."""

import os

import pytest

from sanflow.config.dataset import DatasetChoice
from sanflow.config.names import category_name, name_problem, normal_form, printable
from sanflow.config.strict import validated
from sanflow.errors import ConfigError
from sanflow.pipeline.benchmark import load_benchmark

COMPOSED, DECOMPOSED = "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"
EXPERIMENT = "{method: sanflow, encoder: timm/resnet18.tv_in1k}"


def test_letters_are_composed():
    assert normal_form(DECOMPOSED) == category_name(DECOMPOSED) == COMPOSED
    assert DatasetChoice(categories=[DECOMPOSED]).categories == [COMPOSED]


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a{b", "a}b", "a\nb", "a\0b", os.fsdecode(b"\xb0")]
)
def test_names_that_cannot_be_folders_of_results(name):
    with pytest.raises(ValueError, match="becomes a folder name: ") as caught:
        category_name(name)
    str(caught.value).encode()  # can be printed


@pytest.mark.parametrize("name", ["-x", "a b", "a#b", "it's", "$(a)", "a;b", "日本", "007", "no"])
def test_names_that_can(name):
    assert category_name(name) == name
    assert name_problem(name) is None


def test_bytes_that_are_not_utf8_and_control_characters_are_shown():
    assert printable(os.fsdecode(b"a\xb0\xb4.png")) == r"a\xb0\xb4.png"
    assert printable("a\n\x1b[2J\x9b.png é 日") == r"a\x0a\x1b[2J\x9b.png é 日"


@pytest.mark.parametrize("letter", ["\0", "\t", "\n", "\x1b", "\x7f", "\x85", "\x9b"])
def test_control_characters_are_refused_and_shown(letter):
    assert name_problem(f"a{letter}") == "the name holds control characters. Rename it"
    with pytest.raises(ValueError, match="becomes a folder name") as caught:
        category_name(f"a{letter}")
    assert str(caught.value).startswith(rf"'a\x{ord(letter):02x}' becomes a folder name: ")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (
            "{datasets: {btad: {categories: [01, 02]}}, experiments: {a: %s}}",
            "datasets.btad.categories: expected a name, but got 1, as",
        ),
        (
            "{datasets: {btad: {categories: [010]}}, experiments: {a: %s}}",
            "categories: expected a name, but got 8, as YAML",
        ),
        (
            "{datasets: {btad: {categories: [yes]}}, experiments: {a: %s}}",
            "expected a name, but got True, as YAML reads",
        ),
        (
            "{datasets: {btad: {categories: [2024-05-01]}}, experiments: {a: %s}}",
            "quote the name letter for letter, such as '01' for 01 and 'yes' for yes",
        ),
        (
            "{datasets: {btad: {categories: '01'}}, experiments: {a: %s}}",
            "expected `all` or a list of names, but got '01': write ['01']",
        ),
        (
            "{datasets: {btad: {categories: 1}}, experiments: {a: %s}}",
            "expected `all` or a list of names, but got 1: write the names in quotes, such as ['01', '02']",
        ),
        ("{datasets: {btad: {}}, experiments: {2024: %s}}", "experiments.2024: expected a name, but got 2024, as YAML"),
        ("{datasets: {1: {}}, experiments: {a: %s}}", "datasets.1: expected a name, but got 1, as YAML"),
        (
            "{title: 2024, datasets: {btad: {}}, experiments: {a: %s}}",
            "title: Input should be a valid string, but got 2024: quote it, as '2024'",
        ),
        (
            "{datasets: {btad: {categories: [a, 'b{c}']}}, experiments: {a: %s}}",
            "datasets.btad.categories: 'b{c}' becomes a folder name",
        ),
    ],
)
def test_what_yaml_made_of_unquoted_names(tmp_path, yaml, message):
    (tmp_path / "b.yaml").write_text(yaml % EXPERIMENT)
    with pytest.raises(ConfigError) as caught:
        load_benchmark(tmp_path / "b.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2  # one fault, one line
    assert message in lines[1]
    assert "function-" not in lines[1]
    assert "literal[" not in lines[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_above": 127}, "`mask_above` is for data of your own: that of a registered data set is in the registry"),
        ({"kind": "folder", "root": "/x", "mask_above": -1}, "mask_above: Input should be greater than or equal to 0"),
        ({"bits": 7}, "bits: Input should be greater than or equal to 8"),
        ({"max_megapixels": 0}, "max_megapixels: Input should be greater than 0"),
    ],
)
def test_keys_of_how_files_are_read(values, message):
    with pytest.raises(ConfigError) as caught:
        validated(DatasetChoice, values, "here")
    assert message in str(caught.value)
