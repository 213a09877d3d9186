"""What counts as a change of a step's code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.runtime import code_digests


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {
        "tasks/decode.py": (
            'from storage.formats import idx\n\ndef decode(x):\n    """Doc."""\n    return idx.read(x)\n'
        ),
        "storage/formats/idx.py": "from storage.errors import IdxflowError\n\ndef read(x):\n    return x\n",
        "storage/errors.py": "class IdxflowError(Exception): pass\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code_digests, "ROOT", tmp_path)
    code_digests._read.cache_clear()
    yield tmp_path
    code_digests._read.cache_clear()


def after(project: Path, name: str, old: str, new: str) -> dict[str, str]:
    path = project / name
    path.write_text(path.read_text().replace(old, new))
    code_digests._read.cache_clear()
    return code_digests.digests("tasks.decode")


def test_a_step_is_its_module_and_what_that_imports_but_no_plumbing(project: Path):
    assert list(code_digests.digests("tasks.decode")) == ["storage.formats.idx", "tasks.decode"]


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        ("tasks/decode.py", "idx.read(x)", "idx.read(x) + 1", {"tasks.decode"}),
        ("storage/formats/idx.py", "return x", "return -x", {"storage.formats.idx"}),
        ("tasks/decode.py", '"""Doc."""', '"""Other."""', set()),
        ("tasks/decode.py", "return idx", "# why\n    return idx", set()),
        ("storage/errors.py", "pass", "exit_code = 2", set()),
    ],
)
def test_only_what_runs_counts(project: Path, name: str, old: str, new: str, changed: set[str]):
    before = code_digests.digests("tasks.decode")
    now = after(project, name, old, new)
    assert {module for module in before if before[module] != now[module]} == changed


def test_each_task_depends_on_what_does_its_work():
    assert {"storage.formats.idx", "storage.formats.parquet", "tasks.decode"} == set(
        code_digests.digests("tasks.decode")
    )
    assert "tasks.model.network" in code_digests.digests("tasks.train")
    assert "expectations.suites" in code_digests.digests("tasks.validate")


def test_threads_may_ask_at_once():
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            code_digests._read.cache_clear()
            assert len({tuple(found) for found in pool.map(code_digests.digests, ["tasks.train"] * 8)}) == 1
