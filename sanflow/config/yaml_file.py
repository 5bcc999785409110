"""Read a YAML file of settings."""

import os
from pathlib import Path
from typing import Any

import yaml

from sanflow.errors import ConfigError


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice instead of dropping the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, f"expected a name as key, but got {key!r}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: If it is missing, not YAML, has a key twice, or is not a mapping.
    """
    try:
        # The loader is a SafeLoader; it makes plain values only.
        value = yaml.load(Path(path).read_text("utf-8"), _UniqueKeyLoader)
    except FileNotFoundError as error:
        raise ConfigError(f"Expected a configuration file at {path}, but there is none.") from error
    except OSError as error:
        raise ConfigError(f"Expected to be able to read {path}, but got: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Expected YAML in {path}, but got: {error}") from error
    if value is None:
        raise ConfigError(f"Expected keys and values in {path}, but the file is empty.")
    if not isinstance(value, dict):
        raise ConfigError(f"Expected keys and values in {path}, but got {type(value).__name__}.")
    return value
