"""The architecture holds: imports point down the levels of ARCHITECTURE.md, firewalls stand, imports have no effect."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")


def table(section: str) -> list[list[str]]:
    """Return the rows of the first table of a section of ARCHITECTURE.md, or of its first part."""
    text = (PAGE.split(f"\n## {section}\n", 1)[1] if section else PAGE).split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "sanflow").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
LEVEL = {name: number for number, (_, names, _) in enumerate(table("")) for name in names.split()}


def top(module: str) -> str:
    """The name in the table of a module of sanflow: its first part below the package."""
    return module.split(".")[1] if "." in module else ""


def imports(name: str) -> set[tuple[str, bool]]:
    """What a module imports, and whether at its top (outside functions); modules of sanflow by their full name."""
    found = set()

    def visit(node: ast.AST, at_top: bool) -> None:
        if isinstance(node, ast.Import):
            found.update((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; sanflow imports by full names"
            assert node.module is not None
            for alias in node.names:
                # `from a import b` is module a.b, if there is one and a does not give that name to something else
                full = f"{node.module}.{alias.name}"
                found.add((full if full in MODULES and not _shadowed(node.module, alias.name) else node.module, at_top))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        # What only a type checker imports is not imported when the module is.
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            visit(child, at_top and not inside and not typing_only)

    visit(ast.parse(MODULES[name].read_text("utf-8")), True)
    return found


def _shadowed(package: str, name: str) -> bool:
    """Whether a package's __init__ imports something else under the name of one of its files."""
    tree = ast.parse(MODULES[package].read_text("utf-8"))
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == f"{package}.{name}"
        and name in {alias.asname or alias.name for alias in node.names}
        for node in tree.body
    )


IMPORTS = {name: imports(name) for name in MODULES}


def test_every_module_has_its_level_and_every_entry_its_module():
    assert {top(name) for name in MODULES} - {""} == set(LEVEL)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down_the_levels(name):
    for imported, _ in IMPORTS[name]:
        if imported.split(".")[0] == "sanflow" and top(imported) != top(name):
            assert imported != "sanflow", f"{name} imports the bare package, which holds nothing"
            # The package itself is above all: it hands out what `from sanflow import ...` offers.
            assert name == "sanflow" or LEVEL[top(imported)] < LEVEL[top(name)], (
                f"{name} imports {imported}, which ARCHITECTURE.md does not place at a lower level"
            )


def test_no_import_cycles():
    """At the top of modules: a circle through functions would do no harm, and the levels forbid most of them."""
    seen: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import cycle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in seen:
            for imported, at_top in sorted(IMPORTS[name]):
                if at_top and imported in MODULES:
                    visit(imported, (*path, name))
            seen.add(name)

    for name in MODULES:
        visit(name, ())


def members(who: str) -> set[str]:
    """Modules that a cell of the table of firewalls names."""
    if who == "*":
        return set(LEVEL)
    if who.startswith("all but "):
        return set(LEVEL) - members(who.removeprefix("all but "))
    assert set(who.split()) <= set(LEVEL), f"ARCHITECTURE.md names no modules of sanflow: {who}"
    return set(who.split())


def names_used(name: str) -> set[str]:
    """Every name that a module's code mentions: variables and imported names as they are, attributes with a dot."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(f".{node.attr}")
        elif isinstance(node, ast.Name | ast.alias):
            found.add(node.id if isinstance(node, ast.Name) else node.name)
    return found


@pytest.mark.parametrize("row", table("Firewalls"), ids=lambda row: f"{row[0][:20]}-{row[1][:20]}")
def test_firewalls(row):
    who, what, _ = row
    who, _, exempt = who.partition(" but not ")
    assert not exempt or f"sanflow.{exempt}" in MODULES
    forbidden = set(re.findall(r"`([^`]+)`", what))
    for name in MODULES:
        if top(name) in members(who) and not (exempt and name.startswith(f"sanflow.{exempt}")):
            assert not forbidden & names_used(name), f"{name} uses {forbidden & names_used(name)}"
            for imported, at_top in IMPORTS[name]:
                stem = top(imported) if imported.startswith("sanflow.") else imported.split(".")[0]
                if at_top or not what.endswith(" at the top"):
                    assert stem not in what.removesuffix(" at the top").split(), f"{name} imports {imported}"


def test_nothing_without_torch_reaches_it_through_others():
    """What stands behind the wall imports nothing of sanflow from before it."""
    (walled,) = (members(who) for who, what, _ in table("Firewalls") if what.startswith("torch "))
    for name in MODULES:
        if top(name) in walled:
            for imported, _ in IMPORTS[name]:
                if imported in MODULES:
                    assert top(imported) in walled, f"{name} imports {imported}, which may import torch"


def test_the_names_of_the_authors_stand_in_one_file():
    their_names = re.compile(r"decoder_state_dict|encoder_state_dict|w_perm\b|subnet\.0\.|dncnn\.")
    speaking = {name for name, path in MODULES.items() if their_names.search(path.read_text("utf-8"))}
    assert speaking == {"sanflow.methods.flow.authors_weights"}


def test_the_package_itself_holds_nothing():
    """Only `load_detector`, imported when it is asked for."""
    assert IMPORTS["sanflow"] == {("typing", True), ("sanflow.prediction.detector", False)}


CHECK = """
import importlib, logging, os, random, sys
import numpy, psutil, torch
import rich.console, sklearn.manifold  # they draw from Python's generator as they load; what we add must not

def state():
    name, keys, *rest = numpy.random.get_state()
    return {
        "python's random numbers": random.getstate(),
        "numpy's random numbers": (name, keys.tolist(), rest),
        "torch's random numbers": torch.random.get_rng_state().tolist(),
        "torch's default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "root log handlers": list(logging.root.handlers),
        "working folder": os.getcwd(),
        "open files": sorted(file.path for file in psutil.Process().open_files()),
        "connections": len(psutil.Process().net_connections()),
    }

for name in sys.argv[1:]:
    before = state()
    importlib.import_module(name)
    after = state()
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"importing {name} changes {changed}"
"""


def test_importing_prints_nothing_and_changes_no_global_state(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK, *MODULES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_commands_start_without_the_heavy_libraries():
    """`sanflow --help` and the workflow's many calls do not wait for torch."""
    heavy = "{'torch', 'timm', 'mlflow', 'matplotlib', 'sklearn'}"
    code = f"import sys, sanflow.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_file_in_the_table_of_changes_exists():
    for _, files, tests in table("I want to change ..."):
        for pattern in re.findall(r"`([^` ]+/[^` ]*)`", files):
            assert list(ROOT.glob(pattern.rstrip("/"))), f"ARCHITECTURE.md names {pattern}, which is not there"
        for pattern in re.findall(r"`([^` ]*test_[^` ]+)`", tests):
            assert list((ROOT / "tests").glob(pattern)), f"ARCHITECTURE.md names tests/{pattern}, which is not there"
