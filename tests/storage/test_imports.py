"""Imports without libraries that are not needed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from storage.runtime import imports

ROOT = Path(__file__).resolve().parents[2]


def importable(name: str) -> bool:
    sys.modules.pop(name, None)
    try:
        __import__(name)
    except ModuleNotFoundError:
        return False
    return True


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "chunk_of_tests.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "chunk_of_tests", raising=False)
    return "chunk_of_tests"


def test_what_is_hidden_cannot_be_imported_until_the_block_ends(library: str):
    with imports.without(library):
        assert not importable(library)
    assert importable(library)


def test_another_thread_imports_it_meanwhile(library: str):
    answers: list[bool] = []
    with imports.without(library):
        thread = threading.Thread(target=lambda: answers.append(importable(library)))
        thread.start()
        thread.join()
    assert answers == [True]


def test_what_is_imported_already_stays(library: str):
    assert importable(library)
    with imports.without(library):
        __import__(library)


def test_tensorflow_is_loaded_without_what_only_plots_and_adapters_of_keras_use():
    code = (
        "import sys\nfrom tasks.model import network\nnetwork.tensorflow()\nimport keras\n"
        "print(sorted({'matplotlib', 'pandas', 'scipy', 'sklearn'} & sys.modules.keys()))\n"
        "import pandas, matplotlib, sklearn, scipy"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
