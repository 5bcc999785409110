"""The configuration: defaults of each method, every refusal, and the files generated from the models."""

import json
import re

import pytest
from pydantic import ValidationError

from sanflow.cli.config import configuration_page
from sanflow.config import (
    CHECKOUT,
    Benchmark,
    Experiment,
    Job,
    Settings,
    benchmark_path,
    load_benchmark,
    load_experiment,
    load_settings,
    settings_from,
    settings_here,
)
from sanflow.errors import ConfigError

SHIPPED = ["ablation", "demo", "official", "paper", "tiles"]


def experiment(**values):
    return Experiment.model_validate({"method": "sanflow", "encoder": "timm/resnet18.tv_in1k", **values})


def write(folder, text, name="mine.yaml"):
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_defaults_are_the_papers():
    sanflow = experiment()
    assert (sanflow.epochs, sanflow.passes_per_epoch, sanflow.warmup_epochs, sanflow.batch_size) == (20, 4, 2, 4)
    assert (sanflow.learning_rate, sanflow.position_channels, sanflow.coupling_blocks) == (5e-4, 512, 8)
    assert (sanflow.base, sanflow.synthetic_anomalies, sanflow.update) == ("predicted", True, "per_scale")


def test_cflow_matched_differs_from_sanflow_in_its_base_and_its_anomalies_alone():
    ours, matched = experiment().model_dump(), experiment(method="cflow-matched").model_dump()
    assert {key for key in ours if ours[key] != matched[key]} == {"method", "base", "synthetic_anomalies"}


def test_cflow_is_as_released():
    cflow = experiment(method="cflow")
    assert (cflow.position_channels, cflow.locations_per_step, cflow.learning_rate) == (128, 256, 2e-4)
    assert (cflow.epochs, cflow.passes_per_epoch, cflow.batch_size) == (25, 8, 32)
    sizes = {
        category: cflow.input_size_for(category)[0] for category in ["bottle", "cable", "transistor", "unheard_of"]
    }
    assert sizes == {"bottle": 512, "cable": 256, "transistor": 128, "unheard_of": 256}


def test_a_value_of_the_file_wins_over_the_methods_default():
    assert experiment(method="cflow", batch_size=7, input_size=64).batch_size == 7


@pytest.mark.parametrize(
    ("size", "expected"),
    [(256, (256, 256)), ([192, 320], (192, 320)), ({"default": 256, "transistor": [128, 96]}, (128, 96))],
)
def test_input_size_has_three_forms(size, expected):
    assert experiment(input_size=size).input_size_for("transistor") == expected


def test_training_settings_change_with_what_changes_weights_only():
    settings = experiment().training_settings("tile")
    assert experiment(evaluate_at="native", label="Ours").training_settings("tile") == settings
    assert experiment(input_size={"default": 64, "tile": 256}).training_settings("tile") == settings
    assert experiment(learning_rate=1e-3).training_settings("tile") != settings
    assert experiment(input_size=128).training_settings("tile") != settings


def test_kept_epochs_are_multiples_of_keep_every():
    assert experiment(epochs=7, keep_every=3).kept_epochs == [3, 6]
    assert experiment().kept_epochs == []


def test_misspelt_categories_of_input_sizes_are_told():
    def jobs(**sizes):
        changes = {"method": "sanflow", "encoder": "timm/x.y", "input_size": {"default": 64, **sizes}}
        return list(
            Benchmark.model_validate({"datasets": {"a": {}}, "experiments": {"one": changes}}).jobs(
                {"a": ["transistor"]}
            )
        )

    with pytest.raises(ConfigError, match=r"`input_size` of the experiment 'one', but got 'transitor'. Did you mean"):
        jobs(transitor=128)
    assert len(jobs(transistor=128, transitor=32)) == len(jobs(bottle=128)) == 1  # another choice of categories


def test_paths_of_a_category():
    official = experiment(source="official", official_weights="w/{category}.pt")
    assert official.official_weights_for("nut") == "w/nut.pt"
    assert official.training_settings("nut")["official_weights"] == "w/nut.pt"
    external = Experiment(method="external", maps="{dataset}/m/{category}{x}")
    assert external.maps_for("a", "b") == "a/m/b{x}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "cflow", "synthetic_anomalies": True}, "`locations_per_step` trains each scale on shuffled normal"),
        ({"method": "cflow", "update": "joint"}, "`locations_per_step` trains each scale on shuffled normal"),
        ({"source": "official", "official_weights": "w/bottle.pt"}, "path of the authors' files, with {category}"),
        ({"source": "official", "official_weights": "{category}.pt", "keep_every": 2}, "nothing is trained here"),
        ({"method": "external", "maps": "m", "input_size": 0}, "at least 16 pixels, but got 0"),
        ({"method": "external", "maps": "m", "input_size": {"nut": 32}}, "needs the key `default`"),
    ],
)
def test_impossible_combinations_are_refused(changes, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        experiment(**changes)


def test_files_that_are_no_yaml_are_named(tmp_path):
    for content, message in [(b"\xff\xfe", "Expected YAML in"), (b"? [a, b]\n: 1\n", "expected a name as key")]:
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load_benchmark(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="Expected to be able to read"):
        load_benchmark(tmp_path)


def test_jobs_are_the_product_within_the_data_sets_an_experiment_names():
    benchmark = Benchmark.model_validate(
        {
            "datasets": {"a": {}, "b": {}},
            "experiments": {
                "one": {"method": "sanflow", "encoder": "timm/x.y"},
                "two": {"method": "sanflow", "encoder": "timm/x.y", "datasets": ["b"]},
            },
            "seeds": [0, 5],
        }
    )
    assert list(benchmark.jobs({"a": ["p"], "b": ["q"]})) == [
        Job("a", "p", "one", 0),
        Job("a", "p", "one", 5),
        Job("b", "q", "one", 0),
        Job("b", "q", "one", 5),
        Job("b", "q", "two", 0),
        Job("b", "q", "two", 5),
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_benchmarks_are_valid(name):
    assert load_benchmark(benchmark_path(name)).title


def test_the_papers_benchmark_has_its_two_settings():
    experiments = load_benchmark(benchmark_path("paper")).experiments
    wide50, wide101 = experiments["sanflow-wrn50"], experiments["sanflow-wrn101"]
    assert (wide50.encoder, wide50.input_size) == ("timm/wide_resnet50_2.tv_in1k", 256)
    assert (wide101.encoder, wide101.input_size) == ("timm/wide_resnet101_2.tv_in1k", 320)
    assert {item.method for item in experiments.values()} == {"sanflow", "cflow", "cflow-matched"}


def test_the_ablation_grid_is_complete():
    cells = {
        (item.base, item.synthetic_anomalies, item.abnormal_mean if item.synthetic_anomalies else None)
        for item in load_benchmark(benchmark_path("ablation")).experiments.values()
    }
    assert {(base, anomalies) for base, anomalies, _ in cells} == {
        (base, anomalies) for base in ("fixed", "predicted") for anomalies in (True, False)
    }
    assert ("predicted", True, 0.0) in cells


def test_config_yaml_is_valid_and_selects_the_demo():
    settings = load_settings(CHECKOUT / "config/config.yaml")
    assert settings.benchmark == "demo"
    assert settings.tracking.uri == "sqlite:///results/mlflow.db"
    assert settings.cache_folder.as_posix() == "data/.cache"


@pytest.mark.parametrize(("name", "model"), [("config", Settings), ("benchmark", Benchmark)])
def test_schema_files_are_what_the_models_say(name, model):
    written = json.loads((CHECKOUT / f"workflow/schemas/{name}.schema.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(model.model_json_schema())), "run `sanflow schema` and commit the result"


def test_the_documentation_is_what_the_models_say():
    written = (CHECKOUT / "docs/configuration.md").read_text("utf-8")
    assert written == configuration_page(), "run `sanflow schema` and commit the result"
    missing = [
        name for model in (Settings, Benchmark, Experiment) for name in model.model_fields if f"`{name}`" not in written
    ]
    assert not missing, missing


def test_every_key_has_an_explanation():
    bare = [
        name
        for model in (Settings, Benchmark, Experiment)
        for name, key in model.model_fields.items()
        if not key.description
    ]
    assert not bare, bare


def test_a_benchmark_is_found_by_name_or_path(tmp_path):
    assert benchmark_path("demo") == CHECKOUT / "config/benchmarks/demo.yaml"
    path = write(tmp_path, "datasets: {}", "größe.yaml")
    with pytest.raises(ConfigError, match="becomes a folder name"):
        benchmark_path(str(path))
    with pytest.raises(ConfigError, match=r"there is none"):
        benchmark_path(str(tmp_path / "absent.yaml"))
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        benchmark_path("papre")


def test_environment_variables_in_paths(monkeypatch):
    monkeypatch.setenv("PARTS", "/srv/parts")
    assert settings_from({"data_root": "$PARTS/x"}).data_root == "/srv/parts/x"
    monkeypatch.delenv("PARTS")
    with pytest.raises(ConfigError, match="environment variable PARTS, which is not set"):
        settings_from({"data_root": "$PARTS/x"})


HEAD = "datasets: {d: {kind: folder, root: /d}}\nexperiments:\n  e: "
FLOW = "method: sanflow, encoder: timm/x.y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "Expected keys and values"),
        ("# nothing\n", "but the file is empty"),
        ("a: [1\n", "Expected YAML"),
        ("datasets: {}\ndatasets: {}\n", "the key 'datasets' stands twice"),
        ("datasets: {a: {}}\n", "experiments: Field required"),
        ("datasets: {}\nexperiments: {}\n", "at least 1 item"),
        ("datasets: {a: {kind: folder}}\nexperiments: {e: {" + FLOW + "}}", "needs `root`"),
        ("datasets: {a: {categories: []}}\nexperiments: {e: {" + FLOW + "}}", "`categories` is empty"),
        ("datasets: {a: {categories: ['x/y']}}\nexperiments: {e: {" + FLOW + "}}", "becomes a folder name"),
        ("datasets: {'a b': {}}\nexperiments: {e: {" + FLOW + "}}", "becomes a folder name"),
        (HEAD + "{" + FLOW + ", epoch: 3}", "unknown key 'epoch'.*Did you mean 'epochs'"),
        ("dataset: {}\n" + HEAD + "{" + FLOW + "}", "unknown key 'dataset'.*Did you mean 'datasets'"),
        (HEAD + "{" + FLOW + ", batch_size: four}", "valid integer.*got 'four'"),
        (HEAD + "{" + FLOW + ", batch_size: 0}", "greater than or equal to 1, but got 0"),
        (HEAD + "{" + FLOW + ", seeds: [1]}", "e.seeds: the key 'seeds' belongs to the top of the file"),
        ("datasets: [a]\n" + HEAD.split("\n", 1)[1] + "{" + FLOW + "}", r"valid dictionary, but got \['a'\]"),
        (HEAD + "{" + FLOW + ", learning_rate: .nan}", "finite number"),
        (HEAD + "{" + FLOW + ", update: all}", "'per_scale' or 'joint', but got 'all'"),
        (HEAD + "{" + FLOW + ", epochs: 2}", "at most half of `epochs`"),
        (HEAD + "{" + FLOW + ", input_size: {tile: 3}}", "needs the key `default`"),
        (HEAD + "{" + FLOW + ", input_size: 8}", "at least 16 pixels"),
        (HEAD + "{" + FLOW + ", locations_per_step: 256}", "needs `base: fixed`"),
        (HEAD + "{" + FLOW + ", source: official}", "needs `official_weights`"),
        (HEAD + "{" + FLOW + ", datasets: [dd]}", "names the data set 'dd'.*Did you mean 'd'"),
        (HEAD + "{method: sanflow}", "needs `encoder`"),
        (HEAD + "{method: sanflow, encoder: wide_resnet50_2}", "expected `encoder` as timm/"),
        (HEAD + "{method: external}", "needs `maps`"),
        (HEAD + "{method: cflow, encoder: timm/x.y, base: predicted}", "has the base N"),
        (HEAD + "{" + FLOW + "}\nseeds: [1, 1]", "expected different seeds"),
    ],
)
def test_bad_files_are_refused_with_their_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        load_benchmark(path)
    assert str(path) in str(caught.value)


def test_all_faults_of_a_file_are_told_at_once(tmp_path):
    path = write(tmp_path, HEAD + "{" + FLOW + ", epoch: 3, batch_size: four}\nseed: [1]")
    with pytest.raises(ConfigError) as caught:
        load_benchmark(path)
    assert all(key in str(caught.value) for key in ["e.epoch", "e.batch_size", "seed:"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml, but there is none"):
        load_settings(tmp_path / "absent.yaml")


@pytest.mark.parametrize("uri", ["null", "None", "", None])
def test_the_word_null_of_a_command_line_turns_tracking_off(uri):
    assert settings_from({"tracking": {"uri": uri}}).tracking.uri is None


def test_an_experiment_of_a_benchmark_by_name(tmp_path):
    path = write(tmp_path, HEAD + "{" + FLOW + "}")
    assert load_experiment(str(path), "e").method == "sanflow"
    with pytest.raises(ConfigError, match=r"one of e, but got 'ee'\. Did you mean 'e'\?"):
        load_experiment(str(path), "ee")


def test_the_working_folders_settings_come_before_the_checkouts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings_here() == load_settings(CHECKOUT / "config/config.yaml")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("data_root: elsewhere\n")
    assert str(settings_here().cache_folder) == "elsewhere/.cache"


def test_a_wrong_value_of_the_command_line_names_it_too():
    with pytest.raises(ConfigError, match=r"config/config\.yaml or --config is not a valid"):
        settings_from({"benhcmark": "demo"})
