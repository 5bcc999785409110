"""Environment variables by which the workflow passes settings to the commands of its rules.

They say where and how a job runs, never what it computes, so that a change of one reruns nothing. A command's option of
the same meaning takes the variable as its default (typer's `envvar`).
"""

from sanflow.config.settings import Settings

BENCHMARK = "SANFLOW_BENCHMARK"
DATA_ROOT = "SANFLOW_DATA_ROOT"
DEVICE = "SANFLOW_DEVICE"
CACHE = "SANFLOW_CACHE"
CACHE_GIGABYTES = "SANFLOW_CACHE_GIGABYTES"
OFFLINE = "SANFLOW_OFFLINE"
SAVE_STATE_EVERY = "SANFLOW_SAVE_STATE_EVERY"
SLOTS_PER_GPU = "SANFLOW_SLOTS_PER_GPU"
TRACKING_URI = "SANFLOW_TRACKING_URI"
TRACKING = "SANFLOW_TRACKING"


def handed_on(settings: Settings, benchmark_file: str, results: str) -> dict[str, str]:
    """Return the value of each variable.

    Arguments:
        settings: From config.yaml.
        benchmark_file: Path of the benchmark.
        results: Folder of its results.
    """
    return {
        BENCHMARK: benchmark_file,
        DATA_ROOT: settings.data_root,
        DEVICE: settings.device,
        CACHE: str(settings.cache_folder),
        CACHE_GIGABYTES: str(settings.cache.max_gigabytes),
        OFFLINE: "1" if settings.offline else "",
        SAVE_STATE_EVERY: str(settings.save_state_every_seconds),
        SLOTS_PER_GPU: str(settings.slots_per_gpu),
        # A URI may hold a password, so it is no argument of a command, where logs and process lists would show it.
        TRACKING_URI: settings.tracking.uri or "",
        TRACKING: f"{results}/tracking",
    }
