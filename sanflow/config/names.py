"""Check names that become folders, and paths that may hold variables."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator


def expanded(path: str) -> str:
    """Replace `~` and environment variables in a path.

    Raises:
        ValueError: If a variable is not set.
    """
    result = os.path.expanduser(os.path.expandvars(path))
    if unset := re.search(r"\$\{?(\w+)", result):
        raise ValueError(f"names the environment variable {unset.group(1)}, which is not set")
    return result


def file_name(name: str) -> str:
    """Return a name that becomes a folder name of ours, checked.

    Raises:
        ValueError: If it holds other characters than letters, digits, '.', '_' and '-'.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"{name!r} becomes a folder name: expected letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def category_name(name: str) -> str:
    """Return the name of a category, checked: it is the name of a folder that its owner chose.

    Raises:
        ValueError: If it is empty, begins with '.' or holds / \\ { } or control characters.
    """
    if not name or name.startswith(".") or re.search(r"[/\\{}\x00-\x1f]", name):
        raise ValueError(f"{name!r} becomes a folder name: it may not be empty, begin with '.' or hold / \\ {{ }}")
    return name


ExpandedPath = Annotated[str, AfterValidator(expanded)]
FileName = Annotated[str, AfterValidator(file_name)]
Category = Annotated[str, AfterValidator(category_name)]
