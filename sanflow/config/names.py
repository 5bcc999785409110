"""Normalise and check names that become folders, and paths that may hold variables."""

import os
import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


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
    """Return the name of a category in its normal form, checked: it is the name of a folder that its owner chose.

    Raises:
        ValueError: If it is empty, begins with '.', holds / \\ { } or control characters, or is not UTF-8.
    """
    if problem := name_problem(name):
        raise ValueError(f"'{printable(name)}' becomes a folder name: {problem}")
    if not name or name.startswith(".") or re.search(r"[/\\{}]", name):
        raise ValueError(f"{name!r} becomes a folder name: it may not be empty, begin with '.' or hold / \\ {{ }}")
    return normal_form(name)


def normal_form(name: str) -> str:
    """Convert a name to Unicode's NFC, because systems write the same letters in different ways.

    Example:
        >>> normal_form("e" + chr(0x301)) == chr(0xE9)
        True
    """
    return unicodedata.normalize("NFC", name)


def name_problem(name: str) -> str | None:
    """Say why a path cannot be written into tables and messages; None if it can."""
    if any(0xDC80 <= ord(letter) <= 0xDCFF for letter in name):
        return "the name is not UTF-8. Rename it"
    if CONTROL.search(name):
        return "the name holds control characters. Rename it"
    return None


def printable(text: str) -> str:
    r"""Replace what cannot be printed: bytes of file names that are not UTF-8, and control characters.

    Example:
        >>> print(printable("a" + chr(0xDCB0) + ".png"))
        a\xb0.png
        >>> print(printable("a" + chr(10) + ".png"))
        a\x0a.png
    """
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def require_text(value: Any) -> Any:
    """Refuse what YAML made of an unquoted name: a number, yes or no, a date.

    Raises:
        ValueError: If the value is no text.
    """
    if isinstance(value, str):
        return value
    raise ValueError(
        f"expected a name, but got {value!r}, as YAML reads unquoted numbers, dates, yes, no, on and off as values: "
        "quote the name letter for letter, such as '01' for 01 and 'yes' for yes"
    )


ExpandedPath = Annotated[str, AfterValidator(expanded)]
FileName = Annotated[str, BeforeValidator(require_text), AfterValidator(file_name)]
Category = Annotated[str, BeforeValidator(require_text), AfterValidator(category_name)]
