"""The configuration: defaults of each method, every refusal, and the files generated from the models."""

import json
import re

import pytest
from pydantic import ValidationError

from sanflow.cli.config import configuration_page
from sanflow.config.settings import CHECKOUT, Settings
from sanflow.errors import ConfigError
from sanflow.methods.registry import BUILT_IN, methods
from sanflow.pipeline.benchmark import Benchmark, Job, benchmark_path, load_benchmark, load_experiment

SHIPPED = ["ablation", "demo", "official", "paper", "tiles"]


def experiment(method="sanflow", **values):
    encoder = {} if method == "external" else {"encoder": "timm/resnet18.tv_in1k"}
    return methods()[method].settings.model_validate({"method": method, **encoder, **values})


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
        category: cflow.input_size_for("mvtec_ad", category)[0]
        for category in ["bottle", "cable", "transistor", "unheard_of"]
    }
    assert sizes == {"bottle": 512, "cable": 256, "transistor": 128, "unheard_of": 256}


def test_cflows_sizes_for_mvtec_ad_do_not_apply_to_other_data_of_the_same_category():
    assert experiment(method="cflow").input_size_for("my_parts", "screw") == (256, 256)
    assert experiment(method="cflow", input_size=320).input_size_for("mvtec_ad", "screw") == (320, 320)


def test_a_value_of_the_file_wins_over_the_methods_default():
    assert experiment(method="cflow", batch_size=7, input_size=64).batch_size == 7


@pytest.mark.parametrize(
    ("size", "expected"),
    [(256, (256, 256)), ([192, 320], (192, 320)), ({"default": 256, "transistor": [128, 96]}, (128, 96))],
)
def test_input_size_has_three_forms(size, expected):
    assert experiment(input_size=size).input_size_for("d", "transistor") == expected


def test_fit_settings_change_with_what_changes_weights_only():
    settings = experiment().fit_settings("d", "tile")
    assert experiment(evaluate_at="native", label="Ours").fit_settings("d", "tile") == settings
    assert experiment(input_size={"default": 64, "tile": 256}).fit_settings("d", "tile") == settings
    assert experiment(learning_rate=1e-3).fit_settings("d", "tile") != settings
    assert experiment(input_size=128).fit_settings("d", "tile") != settings


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


def test_files_of_a_category():
    official = experiment(method="official", official_weights="w/{category}.pt")
    assert official.files_for("d", "nut") == {"official_weights": "w/nut.pt"}
    external = experiment(method="external", maps="{dataset}/m/{category}{x}")
    assert external.files_for("a", "b") == {"maps": "a/m/b{x}"}
    assert experiment(weights="w.pth").content_files("a", "b") == ["w.pth"]


def test_every_builtin_method_names_itself_and_says_what_it_is():
    for method in BUILT_IN:
        assert method.settings.model_fields["method"].annotation.__args__ == (method.name,)
        assert method.settings.__doc__
        assert methods()[method.name] is method


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "official", "official_weights": "w/bottle.pt"}, "with {category} in it, but got 'w/bottle.pt'"),
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
    methods = {item.method for item in experiments.values()}
    assert methods == {"sanflow", "cflow", "cflow-matched", "padim", "patchcore"}


def test_the_ablation_grid_is_complete():
    cells = {
        (item.base, item.synthetic_anomalies, item.abnormal_mean if item.synthetic_anomalies else None)
        for item in load_benchmark(benchmark_path("ablation")).experiments.values()
    }
    assert {(base, anomalies) for base, anomalies, _ in cells} == {
        (base, anomalies) for base in ("fixed", "predicted") for anomalies in (True, False)
    }
    assert ("predicted", True, 0.0) in cells


@pytest.mark.parametrize(("name", "model"), [("config", Settings), ("benchmark", Benchmark)])
def test_schema_files_are_what_the_models_say(name, model):
    written = json.loads((CHECKOUT / f"workflow/schemas/{name}.schema.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(model.model_json_schema())), "run `sanflow schema` and commit the result"


def test_the_documentation_is_what_the_models_say():
    written = (CHECKOUT / "docs/configuration.md").read_text("utf-8")
    assert written == configuration_page(), "run `sanflow schema` and commit the result"
    models = (Settings, Benchmark, *(method.settings for method in BUILT_IN))
    missing = [name for model in models for name in model.model_fields if f"`{name}`" not in written]
    assert not missing, missing


def test_every_key_has_an_explanation():
    bare = [
        name
        for model in (Settings, Benchmark, *(method.settings for method in BUILT_IN))
        for name, key in model.model_fields.items()
        if not key.description and name != "method"
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


HEAD = "datasets: {d: {kind: folder, root: /d}}\nexperiments:\n  e: "
FLOW = "method: sanflow, encoder: timm/x.y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "Expected keys and values"),
        ("# nothing\n", "but the file is empty"),
        ("a: [1\n", "Expected YAML"),
        ("datasets: {}\ndatasets: {}\n", "the key 'datasets' is written twice"),
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
        (
            HEAD + "{" + FLOW + ", locations_per_step: 256}",
            "unknown key 'locations_per_step'; valid keys: abnormal_mean",
        ),
        (HEAD + "{method: official, encoder: timm/x.y}", "e.official_weights: Field required"),
        (HEAD + "{method: sanflw, encoder: timm/x.y}", "to be one of sanflow, .*'sanflw'. Did you mean 'sanflow'"),
        (HEAD + "{encoder: timm/x.y}", "e: needs the key `method`"),
        (HEAD + "{" + FLOW + ", datasets: [dd]}", "names the data set 'dd'.*Did you mean 'd'"),
        (HEAD + "{method: sanflow}", "e.encoder: Field required"),
        (HEAD + "{method: sanflow, encoder: wide_resnet50_2}", "expected `encoder` as timm/"),
        (HEAD + "{method: external}", "e.maps: Field required"),
        (HEAD + "{method: cflow, encoder: timm/x.y, base: predicted}", "unknown key 'base'; valid keys: batch_size"),
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


def test_an_experiment_of_a_benchmark_by_name(tmp_path):
    path = write(tmp_path, HEAD + "{" + FLOW + "}")
    assert load_experiment(str(path), "e").method == "sanflow"
    with pytest.raises(ConfigError, match=r"one of e, but got 'ee'\. Did you mean 'e'\?"):
        load_experiment(str(path), "ee")
