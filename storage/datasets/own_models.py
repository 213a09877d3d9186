"""The source of a user's own model, `model = "my_models:build"`: where it is, and which other files it needs.

Nothing here runs it: `tasks.model.own_code` does, and only to train.
"""

from __future__ import annotations

import ast
import hashlib
import symtable
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.datasets.catalog import CATALOG, one_line
from storage.errors import ConfigError
from storage.files import canonical, kind_of, open_regular
from storage.runtime import code_digests

MAX_SOURCE_BYTES = 1 << 20
"""The most bytes of a file of source."""
_PATH = "Python's path (PYTHONPATH)"


@dataclass(frozen=True)
class SourceFile:
    """A file of Python source, as it was read."""

    path: str
    text: str


@dataclass(frozen=True)
class Source:
    """A function that makes a model, with all files of its folder that it imports, so that another machine can run it.

    What is run is what the digest is of, whatever happens to the files meanwhile.
    """

    name: str
    """`my_models:build`: the name of a file without `.py`, and that of a function in it."""
    files: Mapping[str, SourceFile]
    """By the name of the module."""

    @property
    def module(self) -> str:
        return self.name.partition(":")[0]

    @property
    def function(self) -> str:
        return self.name.partition(":")[2]

    @property
    def path(self) -> str:
        """The path of the file that has the function."""
        return self.files[self.module].path

    @property
    def digest(self) -> str:
        """SHA-256 over the name and the text of all files, in hexadecimal digits."""
        texts = {module: hashlib.sha256(file.text.encode()).hexdigest() for module, file in self.files.items()}
        return hashlib.sha256(canonical([self.name, texts])).hexdigest()


def source_of(name: str, manifest: Path) -> Source:
    """Read the source of a user's own model: from the folder of the manifest, otherwise from Python's path.

    With it come the files of the same folder that it imports by statements, directly or indirectly.

    Args:
        name: `module:function`.
        manifest: of the data set.

    Raises:
        ConfigError: there is no such file or function, or it cannot be read as Python.
    """
    module, _, function = name.partition(":")
    _check_name(module, name)
    folder = _folder_of(module, name, manifest)
    files: dict[str, SourceFile] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        if each not in files:
            path = folder / f"{each}.py"
            _check_name(each, name)
            files[each] = SourceFile(str(path), _text(path))
            waiting.extend(other for other in _imported(files[each]) if (folder / f"{other}.py").is_file())
    _check_function(files[module], function, name)
    return Source(name, dict(sorted(files.items())))


def _check_name(module: str, name: str) -> None:
    """Check that a file of this name is the one that would be imported."""
    if module in sys.stdlib_module_names or module in (*code_digests.PACKAGES, "keras", "tensorflow", "numpy"):
        raise ConfigError(
            f'model = "{name}": expected a file of your own, none with the name of a module of Python, Keras or '
            f"idxflow; found {module}.py; give the file another name"
        )


def _folder_of(module: str, name: str, manifest: Path) -> Path:
    own = [] if manifest.parent == CATALOG else [manifest.absolute().parent]
    on_path = (Path(entry) for entry in sys.path if Path(entry).is_absolute())
    for folder in (*own, *on_path):
        path = folder / f"{module}.py"
        if folder != code_digests.ROOT and (path.exists() or path.is_symlink()):
            return folder
    where = f"in {own[0]} or on {_PATH}" if own else f"on {_PATH}, because the data set is one of the catalog"
    raise ConfigError(
        f'model = "{name}": expected the file {module}.py {where}; found none; write it there, or correct the name'
    )


def _text(path: Path) -> str:
    try:
        with open_regular(path) as stream:
            data = stream.read(MAX_SOURCE_BYTES + 1)
        if len(data) > MAX_SOURCE_BYTES:
            raise ValueError(f"more than {MAX_SOURCE_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a file of Python source; found {kind_of(path)} ({error.strerror}); write one there"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{path}: expected Python source in UTF-8; found {one_line(str(error))}; save it in UTF-8"
        ) from error


def _imported(file: SourceFile) -> Iterator[str]:
    """Yield the names of the modules that a file imports, without packages around them."""
    try:
        tree = code_digests.parsed(file.text)
        # It finds what a syntax tree does not show, such as a name that is both global and an argument.
        symtable.symtable(file.text, file.path, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        problem = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(
            f"{file.path}: expected Python source; found {line}{one_line(problem)}; correct it"
        ) from error
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        yield from (top for name in names if (top := name.split(".")[0]) not in sys.stdlib_module_names)


def _check_function(file: SourceFile, function: str, name: str) -> None:
    table = symtable.symtable(file.text, file.path, "exec")
    known = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    if function not in known:
        functions = [symbol.get_name() for symbol in table.get_symbols() if symbol.is_namespace()]
        raise ConfigError(
            f'model = "{name}": expected the function {function} in {file.path}; found '
            f"{one_line(', '.join(functions)) or 'no function'}; write it, or correct the name"
        )
