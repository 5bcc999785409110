"""Find unused files in train/, test/ and ground_truth/, so that no image is left out without a message."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sanflow.data.litter import is_litter

# Notes and annotations that users keep beside images.
NOTES = {".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".doc", ".docx", ".log"}
ANNOTATIONS = {".csv", ".tsv", ".xls", ".xlsx", ".json", ".jsonl", ".yaml", ".yml", ".xml", ".toml"}


@dataclass(frozen=True)
class Leftover:
    """One file or folder that is not used.

    Arguments:
        line: Its path and why it is not used.
        is_document: Whether it is a note or an annotation, which is not expected to be used.
    """

    line: str
    is_document: bool = False


def leftovers(part: Path, root: Path, used: Collection[Path]) -> list[Leftover]:
    """List what is not used in a part of a category, such as train/, with its subfolders one level deep.

    Arguments:
        part: The folder; may be missing.
        root: The data set's top folder.
        used: Files and folders that are used, or reported elsewhere.
    """
    if not part.is_dir():
        return []
    found = []
    for path in _unused(part, used):
        if path.is_dir() and not path.name.startswith("."):
            found += [_leftover(below, root, f"{part.name}/{path.name}") for below in _unused(path, used)]
        else:
            found.append(_leftover(path, root, f"{part.name}/<folder>"))
    # A mask of several files may hold no folders.
    for mask in used:
        if mask.is_dir() and mask.is_relative_to(part) and mask.parent != part:
            found += [_leftover(path, root, part.name) for path in _unused(mask, used) if path.is_dir()]
    return found


def _unused(folder: Path, used: Collection[Path]) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if not is_litter(path.name) and path not in used)


def _leftover(path: Path, root: Path, place: str) -> Leftover:
    name = path.relative_to(root).as_posix()
    if path.is_symlink() and not path.exists():
        return Leftover(f"{name}: a link to {path.readlink()}, which does not exist. Correct the link")
    if path.name.startswith("."):
        return Leftover(f"{name}: hidden, because its name begins with '.'. Rename it or move it away")
    if path.is_dir():
        n_files = sum(below.is_file() for below in path.rglob("*"))
        return Leftover(
            f"{name}: a folder with {n_files} files, which is not read. Move its images up, or move it away"
        )
    if path.suffix.lower() in NOTES | ANNOTATIONS:
        return Leftover(f"{name}: not an image, not used", is_document=True)
    if place.endswith("<folder>"):
        return Leftover(f"{name}: not in a folder of its own, {place}. Move it there, or away")
    return Leftover(f"{name}: no image of a type that is read. Convert it, to PNG for example, or move it away")
