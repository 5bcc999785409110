"""Run a tool on the images of a category, and read the anomaly maps that it wrote."""

import shutil
import tempfile
from pathlib import Path

from sanflow.anomaly_maps.from_other_tools import score_external
from sanflow.files import storage_errors, write_json
from sanflow.methods.command.folders import lay_out
from sanflow.methods.command.process import run
from sanflow.methods.command.settings import COMMAND, CommandExperiment
from sanflow.methods.method import MapJob
from sanflow.provenance import Step, code_digest, environment, fit_digest


def make(job: MapJob) -> None:
    """Run the command of an experiment and write its scores and train.json.

    The folders given to the command are new ones, which are removed in the end. So a job that was killed starts from
    nothing, and a command that outlived it writes where nobody reads.

    Raises:
        DataError: If maps are missing, not finite or of a wrong size, all of them together.
        ToolError: If the command cannot be run, fails or does not end in time.
    """
    experiment: CommandExperiment = job.experiment
    index = job.index
    height, width = experiment.input_size_for(index.dataset, index.category)
    step = Step(
        code_digest("score_external", COMMAND.make_modules), job.device, details={"command": experiment.command}
    )
    record = {
        "job": {
            "dataset": index.dataset,
            "category": index.category,
            "experiment": job.name,
            "seed": job.seed,
            "settings": experiment.fit_settings(index.dataset, index.category),
        },
        "device": job.device,
        "training_images": len(index.train),
        "digests": {
            "config": fit_digest(experiment, index.dataset, index.category),
            "data": index.digest,
            "code": step.code_digest,
        },
        "versions": environment(),
    }
    job.tracker.log(record)
    shutil.rmtree(job.work, ignore_errors=True)
    with storage_errors(job.work):
        job.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.work.absolute()) as temporary:
        folder = Path(temporary)
        given_as = lay_out(index, folder, job.seed)
        maps = folder / "maps"
        maps.mkdir()
        values = {
            "train": str(folder / "train"),
            "test": str(folder / "test"),
            "maps": str(maps),
            "seed": str(job.seed),
            "device": job.device,
            "height": str(height),
            "width": str(width),
        }
        timeout = None if experiment.timeout is None else 60 * experiment.timeout
        seconds, peak = run(experiment.arguments(values), timeout)
        scores = score_external(index, maps, experiment, name=job.name, seed=job.seed, given_as=given_as, step=step)
    shutil.rmtree(job.work, ignore_errors=True)
    record |= {"history": [], "seconds": {"total": seconds}, "peak_memory_bytes": peak, "attempts": 1}
    scores.save(job.scores)
    write_json(job.record, record)
    job.tracker.log(record)
