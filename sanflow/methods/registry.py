"""The methods that a benchmark may name.

A package adds its own through the entry point group `sanflow.methods`: the value is a `DetectorMethod`,
`MapSource` or `MapMaker`.
"""

import functools
import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType

from sanflow.errors import ConfigError
from sanflow.methods import external
from sanflow.methods.command.settings import COMMAND
from sanflow.methods.flow import settings as flow
from sanflow.methods.method import DetectorMethod, MapMaker, MapSource, Method
from sanflow.methods.padim.settings import PADIM
from sanflow.methods.patchcore.settings import PATCHCORE

GROUP = "sanflow.methods"
BUILT_IN: tuple[Method, ...] = (
    flow.SANFLOW,
    flow.CFLOW_MATCHED,
    flow.CFLOW,
    flow.OFFICIAL,
    PADIM,
    PATCHCORE,
    external.EXTERNAL,
    COMMAND,
)


@functools.cache
def methods() -> Mapping[str, Method]:
    """Return the methods by name, those of other packages after the built-in ones.

    Raises:
        ConfigError: If another package's entry is no method, or has the name of a known one.
    """
    found = {method.name: method for method in BUILT_IN}
    for entry in importlib.metadata.entry_points(group=GROUP):
        method = entry.load()
        if not isinstance(method, DetectorMethod | MapSource | MapMaker):
            raise ConfigError(
                f"Expected a DetectorMethod, MapSource or MapMaker in the entry point {entry.value!r} of {GROUP}, but "
                f"got {type(method).__name__}. Correct or uninstall that package."
            )
        if method.name in found:
            raise ConfigError(
                f"Expected a new name for the method of the entry point {entry.value!r}, but {method.name!r} is taken. "
                "Rename it or uninstall that package."
            )
        found[method.name] = method
    return MappingProxyType(found)


def detector_method(name: str) -> DetectorMethod:
    """Return the method of a name, which must be a detector.

    Raises:
        ConfigError: If the method gives maps and no detector.
    """
    method = methods()[name]
    if not isinstance(method, DetectorMethod):
        raise ConfigError(
            f"Expected a method that is fitted, but `{name}` reads finished maps; there is nothing to fit or to load."
        )
    return method
