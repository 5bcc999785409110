"""Find the top folder of a data set, and the folders of its categories."""

from collections.abc import Sequence
from pathlib import Path

from sanflow.config.names import normal_form
from sanflow.errors import DataError


def locate(folder: Path, probes: Sequence[str], title: str) -> Path:
    """Find the top folder of a data set: `folder` itself or a subfolder, as archives often wrap their content.

    Arguments:
        folder: Where to look.
        probes: Paths; the top folder of this data set has at least one of them.
        title: Of the data set, for messages.

    Raises:
        DataError: If neither `folder` nor a subfolder holds one of `probes`.
    """
    if not folder.is_dir():
        raise DataError(f"Expected {title} in the folder {folder}, but there is no such folder.")
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for candidate in (folder, *below):
        if any((candidate / probe).exists() for probe in probes):
            return candidate
    # The user may have named a category instead of its parent folder.
    if any((folder.parent / probe).exists() and probe.split("/")[0] == folder.name for probe in probes):
        hint = f"It looks like one category itself: give its parent folder, {folder.parent}."
    else:
        hint = "Name the data set's own top folder, or fetch it with `sanflow download`."
    more = f" (or {len(probes) - 1} more)" if len(probes) > 1 else ""
    raise DataError(
        f"Expected {title} in {folder}, that is a path {probes[0]}{more} in it or in one of its subfolders, but it has "
        f"{', '.join(path.name for path in below) or 'no subfolders'}. {hint}"
    )


def category_folder(root: Path, category: str) -> Path:
    """Find the folder of a category; its name may be in another Unicode form.

    Arguments:
        root: The data set's top folder.
        category: Name of the category, in its normal form.

    Returns:
        The folder; it does not exist if the data set's categories have no folders.
    """
    plain = root / category
    if plain.exists() or not root.is_dir():
        return plain
    return next((path for path in sorted(root.iterdir()) if normal_form(path.name) == category), plain)
