"""A hundred thousand made-up files for the readers of what comes from outside: nothing may come but a refusal."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.fuzz import fuzz

pytest.importorskip("atheris", reason="needs atheris, which is there for Linux on x86-64 with Python 3.11")


@pytest.mark.parametrize(("target", "runs"), [("idx", 100_000), ("manifest", 5_000)])
def test_made_up_files_are_refused_or_read_and_nothing_else(tmp_path: Path, target: str, runs: int):
    process = fuzz(target, runs, ["-seed=1"], tmp_path)
    assert process.returncode == 0, process.stderr[-4000:]
    assert f"Done {runs} runs" in process.stderr
    assert not list(tmp_path.iterdir())
    # The search was guided: it came further than the seeds.
    branches = [int(count) for count in re.findall(r"cov: (\d+)", process.stderr)]
    assert branches[-1] > branches[0] > 50


@pytest.mark.parametrize("target", ["idx", "manifest"])
def test_the_seeds_themselves_are_in_order(target: str):
    module = importlib.import_module(f"tests.fuzz.{target}_target")
    for seed in module.seeds():
        module.check(seed)


def test_a_foreign_error_is_a_finding_with_its_input(tmp_path: Path):
    """The search itself works: a reader that raises something else is caught."""
    broken = tmp_path / "broken" / "sitecustomize.py"
    broken.parent.mkdir()
    broken.write_text("import struct\nstruct.unpack = None\n")
    process = fuzz("idx", 1000, cwd=tmp_path, path=[broken.parent])
    assert process.returncode != 0
    assert "Test unit written to ./crash-" in process.stderr
    assert [path.name[:6] for path in tmp_path.glob("crash-*")] == ["crash-"]
