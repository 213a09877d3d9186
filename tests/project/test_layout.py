"""Rules about the tree itself: what may be imported where, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "expectations", "storage")
ALLOWED = {
    "prefect": {"flows", "tasks"},
    "great_expectations": {"expectations"},
    "tensorflow": {"tasks"},
    "keras": {"tasks"},
}
WORKERS = Path("storage/workers")
TRIALS = Path("flows/tuning/processes.py")
TRUST = {WORKERS / "dask_cluster.py", WORKERS / "dask_remote.py", TRIALS}
"""What exchanges pickles: with processes that prove by a certificate that they may run code here (see SECURITY.md), or
that it has started itself, over pipes."""
OWN_CODE = Path("tasks/model/own_code.py")
"""What runs the function that makes a user's own model (see SECURITY.md)."""
HEAVY = {
    "distributed",
    "mlflow",
    "openlineage",
    "optuna",
    "tensorboard",
    "tensorflow",
    "keras",
    "great_expectations",
    "sklearn",
    "scipy",
    "matplotlib",
    "pandas",
}
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


@cache
def imports(path: Path, top_level: bool = False) -> frozenset[str]:
    nodes = tree_of(path).body if top_level else ast.walk(tree_of(path))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return frozenset(names)


def forbidden_imports(path: Path) -> set[str]:
    """Return what a module imports that its package may not."""
    package = path.parts[0]
    forbidden = imports(path) & set(PACKAGES[: PACKAGES.index(package)])
    forbidden |= {library for library, where in ALLOWED.items() if package not in where and library in imports(path)}
    if package == "storage":
        models = {"pydantic", "pydantic_core"} if path.parts[1] == "datasets" else set()
        cloud = {"obstore"} if path == Path("storage/objects/cloud.py") else set()
        dask = {"distributed"} if path.parent == WORKERS and path.name.startswith("dask_") else set()
        own = {"storage", "numpy", "pyarrow", "isal"}
        forbidden |= imports(path) - {*sys.stdlib_module_names, *own, *models, *cloud, *dask}
    return {*forbidden}


def of_modules(found: Callable[[Path], Collection[str]]) -> dict[str, list[str]]:
    """Return what is found in modules, by module: a test of each would take three times as long."""
    assert len(MODULES) > 100
    return {str(path): sorted(names) for path in MODULES if (names := found(path))}


def test_imports_go_one_way():
    assert of_modules(forbidden_imports) == {}


def test_heavy_libraries_are_imported_where_they_are_used():
    assert of_modules(lambda path: imports(path, top_level=True) & HEAVY) == {}


def test_no_module_shadows_another():
    taken = {*sys.stdlib_module_names, *PACKAGES, "utils", "common"}
    assert of_modules(lambda path: {path.stem} & taken) == {}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("flows.commands.cli", {"prefect", "numpy", "pyarrow", "pydantic", *HEAVY}),
        ("flows.retrain", HEAVY),
        ("storage.store", {"prefect", "pyarrow", "numpy", "obstore", *HEAVY}),
        ("storage.objects.opening", {"prefect", "pyarrow", "numpy", "obstore", *HEAVY}),
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


RUN_CODE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "h5py", "runpy"}
"""Modules that run what a file says when they read it, or read what may be code."""
CALLS = {"eval", "exec", "compile", "__import__", "load_model", "load_module", "exec_module", "model_from_json"}
CALLS |= {"enable_unsafe_deserialization", "system", "popen", "literal_eval", "from_string", "unsafe_load", "full_load"}
# MLflow loads what the same function has just written, by Keras in its safe mode.
HARMLESS = {("re", "compile"), ("platform", "system"), ("pyfunc", "load_model")}
FLAGS = {
    "allow_pickle": ("False",),
    "shell": ("False",),
    "safe_mode": ("True",),
    "autoescape": ("True",),
    "verify": ("True", "certificates()", "certificates(where.api)"),
}
"""Arguments that may only have these values, where they are given."""


def dangers(tree: ast.AST) -> list[str]:
    """Return what in a module unpickles, evaluates, loads a foreign model or starts a shell."""
    uses = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            uses += [alias.name for alias in node.names if alias.name.split(".")[0] in RUN_CODE]
        elif isinstance(node, ast.ImportFrom):
            uses += [node.module] if (node.module or "").split(".")[0] in RUN_CODE else []
            uses += [alias.name for alias in node.names if alias.name in CALLS]
        elif isinstance(node, ast.Call):
            uses += _called(node)
    return uses


def _called(node: ast.Call) -> list[str]:
    words = ast.unparse(node.func).split(".")
    module, name = ".".join(words[:-1]), words[-1]
    uses = [name] if name in CALLS and (module, name) not in HARMLESS else []
    uses += [f"{module}.load"] if name == "load" and module in ("yaml", "torch", "numpy", "np") else []
    for keyword in node.keywords:
        value = ast.unparse(keyword.value)
        if value not in FLAGS.get(keyword.arg or "", (value,)):
            uses.append(f"{keyword.arg}={value}")
    if (module, name, "allow_pickle") in {("np", "load", k.arg) for k in node.keywords}:
        uses.remove("np.load")
    return uses


def test_nothing_unpickles_or_runs_foreign_data():
    allowed = {str(OWN_CODE): ["exec_module"], **{str(path): ["pickle"] for path in TRUST}}
    assert of_modules(lambda path: dangers(tree_of(path))) == allowed


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import cloudpickle as c",
        "from pickle import loads",
        "import h5py",
        "keras.models.load_model(path)",
        "from keras.models import load_model",
        "keras.config.enable_unsafe_deserialization()",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "yaml.load(text)",
        "torch.load(path)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "jinja2.Environment(autoescape=False)",
        "engine.from_string(text)",
        "httpx.get(url, verify=False)",
    ],
)
def test_what_runs_foreign_data_is_seen(code: str):
    assert dangers(ast.parse(code))


def test_what_only_looks_like_it_is_not():
    assert not dangers(
        ast.parse(
            "re.compile(x); platform.system(); np.load(p, allow_pickle=False); json.load(f); store.load(folder, kind)"
        )
    )


def pins(lock: str) -> dict[str, set[str]]:
    """Return the versions of each package; there may be one for each Python."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    lines = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert all(line.rstrip().endswith("\\") for line in lines)
    assert text.count("--hash=sha256:") >= len(lines)
    found: dict[str, set[str]] = {}
    for line in lines:
        name, version = line.rstrip(" \\").partition(" ;")[0].split("==")
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize(
    ("lock", "named"),
    [
        ("requirements.lock", {"tensorflow", "prefect", "onnx"}),
        ("requirements-bench.lock", {"jax", "idx2numpy", "python-mnist"}),
        ("requirements-export.lock", {"onnx", "ai-edge-litert"}),
    ],
)
def test_locks_have_hashes_name_no_host_and_agree_with_the_first_one(lock: str, named: set[str]):
    ours, found = pins("requirements.lock"), pins(lock)
    assert named <= found.keys()
    assert {name: found[name] for name in found.keys() & ours.keys()} == {
        name: ours[name] for name in found.keys() & ours.keys()
    }


def test_prefect_s_flush_interval_is_in_whole_seconds():
    """Prefect 3.9.1 cuts the fraction off: half a second is none, and a server at rest spins."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        recorder = tomllib.load(stream)["tool"]["prefect"]["server"]["services"]["task_run_recorder"]
    assert int(recorder["flush_interval"]) == recorder["flush_interval"] >= 1
