"""The errors a user can meet, each with the exit code of the command that met it.

A message says what was expected, what was found and what to do. Anything else that escapes is a defect of
sanflow and shows its traceback (exit code 1).
"""

import difflib
from collections.abc import Iterable


class SanflowError(Exception):
    """Root of all errors that a user can mend; never raised itself."""

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
    """The demanded device is missing or cannot be used."""

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
    """The memory of the GPU or of the machine does not suffice."""

    exit_code = 9


class ExportError(SanflowError):
    """A detector cannot be written in another format, or what was written computes something else."""

    exit_code = 10


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or nothing where none is near.

    Example:
        >>> did_you_mean("brik", ["brick", "grass"])
        " Did you mean 'brick'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def not_among(expected: str, known: Iterable[str], name: str) -> ConfigError:
    """The error for a name that is none of the known ones, all of them listed.

    Example:
        >>> str(not_among("a texture among", ["brick", "grass"], "brik"))
        "Expected a texture among brick, grass, but got 'brik'. Did you mean 'brick'?"
    """
    names = list(known)
    return ConfigError(f"Expected {expected} {', '.join(names)}, but got {name!r}." + did_you_mean(name, names))
