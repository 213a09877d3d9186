"""Rules about the tree itself: what may be imported where, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "tasks", "expectations", "storage")
ALLOWED = {
    "prefect": {"flows", "tasks"},
    "great_expectations": {"expectations"},
    "tensorflow": {"tasks"},
    "keras": {"tasks"},
}
HEAVY = {"tensorflow", "keras", "great_expectations", "sklearn", "scipy", "matplotlib", "pandas"}
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).glob("*.py"))


def imports(path: Path, top_level: bool = False) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path: Path):
    package = path.parts[0]
    above = set(PACKAGES[: PACKAGES.index(package)])
    assert not imports(path) & above
    for library, where in ALLOWED.items():
        assert package in where or library not in imports(path)
    if package == "storage":
        assert imports(path) <= {*sys.stdlib_module_names, "storage", "numpy", "pyarrow"}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path):
    assert not imports(path, top_level=True) & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_shadows_another(path: Path):
    assert path.stem == "__init__" or path.stem not in {*sys.stdlib_module_names, *PACKAGES, "utils", "common"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("flows.cli", {"prefect", "numpy", "pyarrow", *HEAVY}),
        ("flows.retrain", HEAVY),
        ("storage.store", {"prefect", "pyarrow", "numpy", *HEAVY}),
    ],
)
def test_importing_stays_light(module: str, forbidden: set[str]):
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & forbidden


def test_every_folder_is_a_package_of_this_tree():
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").is_file()
        assert Path(__import__(package).__file__).is_relative_to(ROOT)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_unpickles_or_runs_foreign_data(path: Path):
    text = (ROOT / path).read_text()
    for word in ("pickle.load", "cloudpickle", "load_model", "allow_pickle=True", "shell=True", "eval(", "exec("):
        assert word not in text


def test_the_lock_has_hashes_and_names_no_host():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    for block in text.split("\n\n")[-1].split("\n    # via")[0:1]:
        assert "--hash=sha256:" in block
    pinned = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert len(pinned) > 100
    assert all(line.rstrip().endswith("\\") for line in pinned)
