"""Digests of the project's source code that a step runs, so that a step runs again when its algorithm changes.

A step's code is its own module and every module that it imports, directly or indirectly, from the folders that affect
results. A digest covers a module's syntax tree without the parts that cannot affect a result: comments, formatting,
docstrings, log lines and error messages.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from storage.runtime import timings

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "expectations", "storage")
DECIDING = ("expectations", "storage.formats", "tasks")
"""The folders whose modules affect results."""
SHOWING = "tasks.ui"
"""The folder within these whose modules only display progress and results."""
_LOG = "_log"
"""The name of every module's logger."""
_DYNAMIC = frozenset({"import_module", "__import__", "run_module", "run_path"})

# CPython 3.11 shares the depth counter of its AST constructor among threads: parsing in two at once can raise
# "SystemError: AST constructor recursion depth mismatch".
_parsing = threading.Lock()


def digests(module: str) -> dict[str, str]:
    """Return the digest (16 hexadecimal digits) of `module` and of each module that it depends on, by name.

    Raises:
        ValueError: a module imports something in a way that cannot be followed.
    """
    by_module: dict[str, str] = {}
    waiting = [module]
    with timings.span("digests of source code"):
        while waiting:
            name = waiting.pop()
            if name not in by_module:
                by_module[name], imported = _read(name)
                waiting.extend(imported)
    return dict(sorted(by_module.items()))


def library_versions(*libraries: str) -> dict[str, str]:
    """Return the installed version of each library, without importing it."""
    return {name: version_of(name) for name in libraries}


@cache
def version_of(library: str) -> str:
    """Return the installed version of a library, without importing it; to look it up takes half a millisecond.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    return importlib.metadata.version(library)


def parsed(source: str | bytes) -> ast.Module:
    """Return the syntax tree of Python source.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it is none.
    """
    with _parsing:
        return ast.parse(source)


@cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    tree = parsed(_path(module).read_bytes())
    imported = frozenset(name for node in ast.walk(tree) for name in _imports(module, node) if _decides(name))
    return hashlib.sha256(ast.unparse(_Deciding().visit(tree)).encode()).hexdigest()[:16], imported - {module}


def _path(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _decides(module: str) -> bool:
    return any(_within(module, folder) for folder in DECIDING) and not _within(module, SHOWING)


def _within(module: str, folder: str) -> bool:
    return module.startswith(f"{folder}.")


def _imports(module: str, node: ast.AST) -> Iterator[str]:
    """Yield the modules of this project that a node imports."""
    if isinstance(node, ast.Import):
        yield from (_followed(module, node, alias.name) for alias in node.names if _is_ours(alias.name))
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise _unfollowed(module, node, "names that begin with the package, such as tasks.model.scaling")
        source = node.module or ""
        if not _is_ours(source):
            return
        if _path(source).is_file():
            yield source
        else:
            yield from (_followed(module, node, f"{source}.{alias.name}") for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in _DYNAMIC:
        raise _unfollowed(module, node, "imports that stand in the source")


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in PACKAGES


def _followed(module: str, node: ast.stmt, name: str) -> str:
    if not _path(name).is_file():
        raise _unfollowed(module, node, "modules, not what a package has besides")
    return name


def _unfollowed(module: str, node: ast.stmt | ast.expr, expected: str) -> ValueError:
    return ValueError(
        f"{_path(module).relative_to(ROOT)}, line {node.lineno}: expected imports of {expected}, because the digest of "
        f"a step follows them; found `{ast.unparse(node)}`; import the module by its full name"
    )


class _Deciding(ast.NodeTransformer):
    """Removes what cannot affect results: string statements (docstrings, field notes), log lines, error messages."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        value = node.value
        is_string = isinstance(value, ast.Constant) and isinstance(value.value, str)
        return ast.copy_location(ast.Pass(), node) if is_string or _is_log_line(value) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return self.generic_visit(node)


def _is_log_line(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and isinstance(value.func.value, ast.Name)
        and value.func.value.id == _LOG
    )
