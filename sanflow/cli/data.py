"""Commands about data: `download` a data set, `index` a category, look at or clear the image `cache`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sanflow.config import handed_on
from sanflow.config.dataset import DatasetChoice
from sanflow.config.settings import settings_here
from sanflow.data.registry import load_registry
from sanflow.errors import not_among
from sanflow.pipeline.benchmark import benchmark_path, load_benchmark

# Modules that read images are imported by the commands that need them, so that `sanflow --help` is fast.

DatasetName = Annotated[str, typer.Argument(help="Name of the data set, as in the benchmark file or the registry.")]
BenchmarkName = Annotated[
    str | None,
    typer.Option(
        "--benchmark",
        envvar=handed_on.BENCHMARK,
        help="Benchmark that says where the data set is: name in config/benchmarks/ or path of a file.",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        envvar=handed_on.DATA_ROOT,
        help="Folder in which data sets are kept.",
        show_default="`data_root` of config/config.yaml",
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(envvar=handed_on.CACHE, help="Folder of the image cache.", show_default="that of config/config.yaml"),
]


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.command()(download)
    app.command()(index)
    app.command()(datasets)
    cache = typer.Typer(no_args_is_help=True, help="Look at or clear the cache of decoded, resized images.")
    cache.command("size")(cache_size)
    cache.command("clear")(cache_clear)
    app.add_typer(cache, name="cache")


def download(
    dataset: DatasetName,
    *,
    benchmark: BenchmarkName = None,
    data_root: DataRoot = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(help="Address, file:// address, archive or folder to take it from; may be repeated."),
    ] = None,
    offline: Annotated[bool, typer.Option(help="Open no connection; what is missing is an error.")] = False,
) -> None:
    """Fetch, check and unpack a data set, or make the built-in one; nothing is done if it is complete."""
    from sanflow.data.download import download as bring

    choice = _choice(dataset, benchmark)
    if choice.root is not None:
        typer.echo(f"{dataset} is in {choice.root}; there is nothing to download.")
        return
    marker = bring(
        dataset,
        data_root or Path(settings_here().data_root),
        mirrors=mirror or choice.mirrors,
        offline=offline or _offline(),
    )
    typer.echo(f"{dataset} is complete in {marker.parent}.")


def index(
    dataset: DatasetName,
    category: Annotated[str, typer.Argument(help="Name of the category.")],
    *,
    output: Annotated[Path, typer.Option(help="Where index.csv is written; index.json goes beside it.")],
    benchmark: BenchmarkName = None,
    data_root: DataRoot = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of a data set of your own, `<root>/<category>/train/good` and so on.")
    ] = None,
    without_test: Annotated[
        bool, typer.Option("--without-test", help="Take a category without test images: it can be fitted, not scored.")
    ] = False,
) -> None:
    """List and check all images and masks of a category; every later step reads only this list."""
    from sanflow.data.download import dataset_folder
    from sanflow.data.index import build_index, summary, write_index

    choice = _choice(dataset, benchmark)
    kind = "folder" if root is not None else choice.kind
    place = root or choice.root
    kept_in = data_root or Path(settings_here().data_root)
    folder = Path(place) if place is not None else dataset_folder(dataset, kept_in)
    made = build_index(
        dataset,
        category,
        folder,
        kind=kind,
        mask_above=choice.mask_above,
        bits=choice.bits,
        max_megapixels=choice.max_megapixels,
        part_pattern=choice.part_pattern,
        test_needed=not without_test,
    )
    write_index(made, output)
    counts = summary(made)["counts"]
    typer.echo(
        f"{dataset}/{category}: {counts['train']} training images, {counts['good']} good and {counts['defective']} "
        f"defective test images, digest {made.digest[:16]}"
    )
    if counts["defective_without_pixels"]:
        typer.echo(f"Note: the masks of {counts['defective_without_pixels']} defective images are empty.")
    for warning in made.warnings:
        typer.echo(f"warning: {warning}", err=True)


def datasets() -> None:
    """List the registered data sets with their licence and number of categories."""
    for name, entry in load_registry().items():
        how = "built in" if entry.builtin else "fetched by hand" if entry.manual else "downloaded"
        how = f"in the package {entry.package}" if entry.package else how
        typer.echo(f"{name}: {entry.title}, {len(entry.categories)} categories, {how}; licence: {entry.licence}")


def cache_size(cache: CacheFolder = None) -> None:
    """List what the image cache holds, least recently used first."""
    from sanflow.data.cache import entries

    cache = cache or settings_here().cache_folder
    found = entries(cache)
    for entry in found:
        typer.echo(f"{entry.n_bytes / 1e6:10.1f} MB  {entry.label}")
    typer.echo(f"{sum(entry.n_bytes for entry in found) / 1e6:10.1f} MB  in {len(found)} entries of {cache}")


def cache_clear(cache: CacheFolder = None) -> None:
    """Remove everything from the image cache; it fills again by itself."""
    from sanflow.data.cache import clear

    cache = cache or settings_here().cache_folder
    typer.echo(f"{clear(cache) / 1e6:.1f} MB freed in {cache}")


def _choice(dataset: str, benchmark: str | None) -> DatasetChoice:
    if benchmark is None:
        return DatasetChoice()
    chosen = load_benchmark(benchmark_path(benchmark)).datasets
    if dataset not in chosen:
        raise not_among(f"a data set of {benchmark} among", chosen, dataset)
    return chosen[dataset]


def _offline() -> bool:
    """Return whether connections are forbidden: by the environment, else by config.yaml."""
    forbidden = os.environ.get(handed_on.OFFLINE)
    return settings_here().offline if forbidden is None else forbidden not in {"", "0"}
