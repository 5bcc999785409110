"""Write data as JavaScript files, because a page that is opened from the disk may load scripts but no other files."""

import json
from pathlib import Path
from typing import Any

# JSON is JavaScript except for these: `<` could end a script element or begin a comment of HTML, and the two separators
# end a line in older JavaScript.
ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def write_script(path: Path, name: str, value: Any) -> None:
    """Write a script that passes `value` to the page under `name`.

    Arguments:
        path: The file.
        name: Under which the page asked for it.
        value: Any JSON value; floats keep all their digits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script_of(name, value), "utf-8")


def script_of(name: str, value: Any) -> str:
    r"""Return the text of such a script.

    Example:
        >>> print(script_of("names", ["</script>"]), end="")
        receive("names", ["\u003c/script\u003e"]);
    """
    return f"receive({_literal(name)}, {_literal(value)});\n"


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(ESCAPES)
