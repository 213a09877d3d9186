"""A whole run on archives that are decoded in parts, in less memory than their rows take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.formats import split_rows
from storage.retention import collect
from storage.store import Store
from storage.verify import verify
from tests.conftest import bars
from tests.support.listed_archives import write_listed
from tests.support.runs import run_without_prefect


def test_a_run_in_parts_is_reused_mended_and_reported(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(split_rows, "PART_ROWS", 64)
    manifest = write_listed(tmp_path, bars(400, 100, 3, (9, 7)), [100, 60, 200, 40]).manifest

    def run() -> dict[str, Any]:
        outcome = run_without_prefect(store, dataset_file=str(manifest), memory="15KB")
        assert outcome["error"] is None
        return outcome

    first, again = run(), run()
    assert (first["state"], again["state"]) == ("promoted", "unchanged")
    assert all(step["reused"] for step in again["steps"].values())
    endings = {name: step["summary"].partition(" in ")[2] for name, step in first["steps"].items()}
    assert (endings["decode train"], endings["normalize"]) == ("8 parts, 8 new", "8 parts, 8 new")
    assert endings["evaluate"] == "2 parts, 2 new"
    report = json.loads((store.entries("listed", "publish") / first["run"] / "report.json").read_text())
    assert [split["parts"] for split in report["data"]["splits"]] == [8, 2]
    assert report["training"]["device"] == "CPU"
    damaged = next(store.entries("listed", "evaluate").glob("*/predictions.npz"))
    whole = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(np.random.default_rng(1).bytes(len(whole)))
    mended = run()
    assert mended["steps"]["evaluate"]["reason"] == "1 new part"
    assert damaged.read_bytes() == whole
    # What the kept results list is kept, too.
    assert collect(store, "listed", keep_last=1).entries == ()
    assert verify(store, "listed").findings == ()
