"""`sanflow import-official`: the authors' weights of one category become a checkpoint of ours."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this file's command to the command line."""
    app.command()(import_official)


def import_official(
    file: Annotated[Path, typer.Argument(help="The authors' weight file of the category.")],
    *,
    index: Annotated[Path, typer.Option(help="index.csv of the category.")],
    benchmark: Annotated[str, typer.Option(help="Name in config/benchmarks/ or path of a benchmark file.")],
    experiment: Annotated[str, typer.Option(help="Key of an experiment of the benchmark.")],
    output: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    history: Annotated[Path, typer.Option(help="train.json to write: what was read, and an empty history.")],
    seed: Annotated[int, typer.Option(help="Seed to write down; nothing is drawn.")] = 0,
) -> None:
    """Import the authors' weight file of one category."""
    from sanflow.config import load_experiment
    from sanflow.data.index import read_index
    from sanflow.errors import ConfigError
    from sanflow.files import write_json
    from sanflow.methods.checkpoints import save_checkpoint
    from sanflow.methods.flow import authors_weights as official
    from sanflow.provenance import code_digest, environment, training_digest

    settings = load_experiment(benchmark, experiment)
    content = read_index(index)
    if settings.source != "official":
        raise ConfigError(
            f"Expected an experiment with `source: official`, but {experiment!r} has `source: {settings.source}`."
        )
    imported = official.import_official(file, settings)

    report = imported.report
    save_checkpoint(
        output,
        imported.model,
        settings,
        imported.encoder.identity,
        channels=imported.encoder.channels,
        seed=seed,
        input_size=settings.input_size_for(content.category),
        encoder_state=imported.encoder_state,
        provenance={
            "dataset": content.dataset,
            "category": content.category,
            "experiment_name": experiment,
            "index_digest": content.digest,
            "config_digest": training_digest(settings.training_settings(content.category)),
            "code_digest": code_digest("import_official"),
            "versions": environment(),
            "import": report,
        },
    )
    parameters = sum(parameter.numel() for parameter in imported.model.parameters())
    write_json(history, {"history": [], "parameters": parameters, "import": report})
    typer.echo(f"{file} -> {output}: encoder {report['encoder']}, {report.get('why', 'nothing kept of it')}")
    for key in report["unused_keys"]:
        typer.echo(f"  unused: {key}")
