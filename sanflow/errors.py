"""The errors that a user can see, each with the exit code of the command that raises it.

A message says what was expected, what was found and what to do. Any other exception is a defect of
sanflow and shows its traceback (exit code 1).
"""

import difflib
from collections.abc import Iterable


class SanflowError(Exception):
    """Base class of all errors that a user can correct; never raised itself."""

    exit_code = 1


class ConfigError(SanflowError):
    """A configuration file, key or command-line value is wrong."""

    exit_code = 2


class DataError(SanflowError):
    """A data set, image, mask or download is missing, unreadable or not what was expected."""

    exit_code = 3


class WeightsError(SanflowError):
    """Weights cannot be found, fetched or fitted to their network."""

    exit_code = 4


class DeviceError(SanflowError):
    """The required device is missing or cannot be used."""

    exit_code = 5


class StorageError(SanflowError):
    """A disk is full or a folder cannot be written."""

    exit_code = 6


class IntegrityError(SanflowError):
    """A file that sanflow wrote earlier is damaged or belongs to another run."""

    exit_code = 7


class TrainingError(SanflowError):
    """Training had to stop: the loss or its gradients are no longer finite."""

    exit_code = 8


class OutOfMemoryError(SanflowError):
    """The memory of the GPU or of the machine is too small."""

    exit_code = 9


class ToolError(SanflowError):
    """A command that an experiment names cannot be run, fails or does not end in time."""

    exit_code = 10


class ExportError(SanflowError):
    """A detector cannot be written in another format, or what was written computes something else."""

    exit_code = 11


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or nothing if none is near.

    Example:
        >>> did_you_mean("brik", ["brick", "grass"])
        " Did you mean 'brick'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def not_among(expected: str, known: Iterable[str], name: str) -> ConfigError:
    """Make the error for a name that is not one of the known ones, which are all listed.

    Example:
        >>> str(not_among("a texture among", ["brick", "grass"], "brik"))
        "Expected a texture among brick, grass, but got 'brik'. Did you mean 'brick'?"
    """
    names = list(known)
    return ConfigError(f"Expected {expected} {', '.join(names)}, but got {name!r}." + did_you_mean(name, names))
