"""Which of this project's source a step runs, as digests, so that a changed algorithm is run again.

A module's digest is over its syntax tree without docstrings: comments, formatting and documentation
change nothing. A step's code is its own module and every module of the project that it imports, at
any depth, except the plumbing below, which moves bytes but does not decide what they are.
"""

from __future__ import annotations

import ast
import hashlib
import threading
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "expectations", "storage")
DECIDING = ("expectations", "storage.formats", "tasks")
"""The folders whose modules decide what a result is."""
PLUMBING = ("tasks.ui",)
"""The folder within these whose modules only show what is done."""


# CPython 3.11 counts the depth of the tree it builds in one place for all threads: two that parse at once can end
# in "SystemError: AST constructor recursion depth mismatch".
_parsing = threading.Lock()


def digests(module: str) -> dict[str, str]:
    """Return the digest (16 hexadecimal digits) of `module` and of each module it builds on, by name."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and _decides(name):
            found[name], imported = _read(name)
            waiting.extend(imported)
    return dict(sorted(found.items()))


def _decides(module: str) -> bool:
    inside = [folder for folder in (*DECIDING, *PLUMBING) if module.startswith(f"{folder}.")]
    return bool(inside) and inside[-1] not in PLUMBING


@cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    with _parsing:
        tree = ast.parse(_path(module).read_bytes())
    imported = frozenset(
        name for node in ast.walk(tree) for name in _imports(node) if _path(name).is_file() and name != module
    )
    return hashlib.sha256(ast.unparse(_Undocumented().visit(tree)).encode()).hexdigest()[:16], imported


def _path(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    else:
        names = []
    return [name for name in names if name.split(".")[0] in PACKAGES and "." in name]


class _Undocumented(ast.NodeTransformer):
    """Removes string statements: the docstrings, and the strings that document a field."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_string = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.copy_location(ast.Pass(), node) if is_string else node
