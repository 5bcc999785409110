"""Commands about the configuration: `check` a benchmark file, write the `schema` and its page in the docs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from sanflow.config.dataset import DatasetChoice
from sanflow.config.experiment import Experiment
from sanflow.config.settings import Cache, Settings, Tracking
from sanflow.files import atomic_path
from sanflow.methods.registry import BUILT_IN
from sanflow.pipeline.benchmark import Benchmark, benchmark_path, load_benchmark

PAGE = """# Configuration

*Written by `sanflow schema` from the models in `sanflow/config/` and `sanflow/methods/`; a test compares them.*

`config/config.yaml` says which benchmark to run, and where. A benchmark is one file: `config/benchmarks/<name>.yaml`,
or any path given as `--config benchmark=/path/mine.yaml` (its results go to `results/mine/`). Unknown keys, and keys of
another method, are refused with the nearest valid name, before any work. `sanflow check <benchmark>` does that, and
looks for the files it names and builds its encoders. Paths may hold `~` and `$VARIABLES`; relative ones count from the
folder in which `snakemake` is started.

```yaml
datasets:
  mvtec_ad: {categories: all}
  my_parts: {kind: folder, root: /data/parts, categories: [screw]}
experiments:
  sanflow-wrn50: {method: sanflow, encoder: timm/wide_resnet50_2.tv_in1k, input_size: 256}
  cflow-matched: {method: cflow-matched, encoder: timm/wide_resnet50_2.tv_in1k, input_size: 256}
seeds: [0, 1, 2]
```
"""


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.command()(check)
    app.command(hidden=True)(schema)


def check(
    benchmark: Annotated[str, typer.Argument(help="Name in config/benchmarks/ or path of a benchmark file.")],
    results: Annotated[
        Path | None, typer.Option(help="Folder of its results: what only finished jobs need may be missing.")
    ] = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing where all is well.")] = False,
) -> None:
    """Check a benchmark file, the files it names and its encoders, and say what it would run.

    The workflow does so before its first job. Nothing is downloaded and no image is read.
    """
    from sanflow.pipeline.preflight import check_benchmark

    path = benchmark_path(benchmark)
    chosen = load_benchmark(path)
    categories = check_benchmark(chosen, results)
    if quiet:
        return
    typer.echo(f"{path} is valid: {chosen.title or path.stem}")
    for name, names in categories.items():
        typer.echo(f"  data set    {name}: {', '.join(names)}")
    for name, experiment in chosen.experiments.items():
        source = getattr(experiment, "encoder", None) or ", ".join(
            experiment.files_for("{dataset}", "{category}").values()
        )
        typer.echo(f"  experiment  {name}: {experiment.method}" + (f" on {source}" if source else ""))
    typer.echo(f"  seeds       {', '.join(map(str, chosen.seeds))}")


def schema(
    folder: Annotated[Path, typer.Argument(help="Top folder of the checkout.")] = Path(),
) -> None:
    """Write the JSON schemas of config.yaml and of benchmark files, and docs/configuration.md."""
    models: dict[str, type[BaseModel]] = {"config": Settings, "benchmark": Benchmark}
    for name, model in models.items():
        with atomic_path(folder / f"workflow/schemas/{name}.schema.json") as temporary:
            temporary.write_text(json.dumps(model.model_json_schema(), indent=2) + "\n", "utf-8")
    with atomic_path(folder / "docs/configuration.md") as temporary:
        temporary.write_text(configuration_page(), "utf-8")


def configuration_page() -> str:
    """Write the text of docs/configuration.md."""
    sections = [
        PAGE,
        _section("config/config.yaml", Settings),
        _section("`tracking`", Tracking),
        _section("`cache`", Cache),
        _section("A benchmark file", Benchmark),
        _section("`datasets`: each entry", DatasetChoice),
        _section("`experiments`: keys of every method", Experiment),
        *(_method_section(method.name, method.settings) for method in BUILT_IN),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _method_section(name: str, settings: type[Experiment]) -> str:
    """Describe the keys that a method adds to those of every method, or whose default it changes."""
    common = Experiment.model_fields
    own = [
        key
        for key, field in settings.model_fields.items()
        if key != "method" and (key not in common or field.default != common[key].default)
    ]
    summary = " ".join((settings.__doc__ or "").split())
    return f"{_section(f'`method: {name}`', settings, own, summary)}"


def _section(title: str, model: type[BaseModel], names: Iterable[str] | None = None, summary: str = "") -> str:
    rows = [
        f"| `{name}` | {_shown_default(field)} | {_cell(field.description or '')} |"
        for name, field in model.model_fields.items()
        if names is None or name in names
    ]
    return (
        f"## {title}\n\n"
        + (f"{summary}\n\n" if summary else "")
        + "| key | default | meaning |\n|---|---|---|\n"
        + "\n".join(rows)
    )


def _cell(text: str) -> str:
    """Format text as a cell of a Markdown table: one line, no bar."""
    return " ".join(text.split()).replace("|", chr(92) + "|")


def _shown_default(field: Any) -> str:
    if field.is_required():
        return "*needed*"
    if isinstance(field.default, BaseModel):
        return "see below"
    return f"`{_shown(field.default)}`" if field.default != "" else "empty"


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False).strip('"')
