"""config.yaml: its defaults, the folder whose file counts, and what is refused."""

import pytest

from sanflow.config.handed_on import handed_on
from sanflow.config.settings import CHECKOUT, Settings, load_settings, settings_from, settings_here
from sanflow.errors import ConfigError


def test_environment_variables_in_paths(monkeypatch):
    monkeypatch.setenv("PARTS", "/srv/parts")
    assert settings_from({"data_root": "$PARTS/x"}).data_root == "/srv/parts/x"
    monkeypatch.delenv("PARTS")
    with pytest.raises(ConfigError, match="environment variable PARTS, which is not set"):
        settings_from({"data_root": "$PARTS/x"})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml, but there is none"):
        load_settings(tmp_path / "absent.yaml")


@pytest.mark.parametrize("uri", ["null", "None", "", None])
def test_the_word_null_of_a_command_line_turns_tracking_off(uri):
    assert settings_from({"tracking": {"uri": uri}}).tracking.uri is None


def test_the_working_folders_settings_come_before_the_checkouts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings_here() == load_settings(CHECKOUT / "config/config.yaml")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("data_root: elsewhere\n")
    assert str(settings_here().cache_folder) == "elsewhere/.cache"


def test_a_wrong_value_of_the_command_line_names_it_too():
    with pytest.raises(ConfigError, match=r"config/config\.yaml or --config is not a valid"):
        settings_from({"benhcmark": "demo"})


def test_config_yaml_is_valid_and_selects_the_demo():
    settings = load_settings(CHECKOUT / "config/config.yaml")
    assert settings.benchmark == "demo"
    assert settings.tracking.uri == "sqlite:///results/mlflow.db"
    assert settings.cache_folder.as_posix() == "data/.cache"


def test_the_workflow_hands_every_setting_of_where_and_how_to_its_commands():
    settings = settings_from({"device": "cpu", "data_root": "d", "offline": True, "slots_per_gpu": 2})
    values = handed_on(settings, "b.yaml", "results/b")
    assert values["SANFLOW_DEVICE"] == "cpu"
    assert values["SANFLOW_CACHE"] == "d/.cache"
    assert (values["SANFLOW_OFFLINE"], values["SANFLOW_SLOTS_PER_GPU"]) == ("1", "2")
    assert values["SANFLOW_TRACKING"] == "results/b/tracking"
    assert handed_on(Settings(), "b.yaml", "results/b")["SANFLOW_OFFLINE"] == ""
