"""Stores of the formats before are used as if this version had written them; those of a later one are refused.

`store-format-2.tar.xz` was written by the last version without `store.json`: four models of the data set `tiny` (one
promoted, a better one promoted, one kept out, one that diverged), an unchanged run, version 3 promoted by hand and
rolled back; with the manifest and the archives.

`store-format-3.tar.xz` was written by the last version in which `champion.json` was the authority: five models of
`tiny` (one promoted, a better one promoted, three kept out), an unchanged run, version 4 promoted by a process that was
killed before it took effect, version 3 promoted by hand and rolled back, and versions 3 and 4 retired.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.files import put_json_if_absent, read_json
from storage.ledger import Ledger, is_decision
from storage.registry import Registry, Standing
from storage.store import Store
from storage.store_format import FORMAT, STORE_FILE
from tests.support import commands
from tests.support.old_stores import unpacked
from tests.support.runs import run_without_prefect
from tests.support.servers import clean_environment

Idxflow = Callable[..., subprocess.CompletedProcess]
SAME_AS_CHAMPION = {"hidden": [4], "epochs": 20, "learning_rate": 0.02, "batch_size": 64}


@pytest.fixture
def old(tmp_path: Path) -> Store:
    """A store of format 2, beside the manifest and the archives of its data set."""
    return unpacked(2, tmp_path)


@pytest.fixture
def old_3(tmp_path: Path) -> Store:
    """A store of format 3, beside the manifest and the archives of its data set."""
    return unpacked(3, tmp_path)


@pytest.fixture
def idxflow(tmp_path: Path) -> Idxflow:
    """Call a command about that store."""
    environment = clean_environment(tmp_path) | {"IDXFLOW_STORE": str(tmp_path / "store")}

    def call(*arguments: str) -> subprocess.CompletedProcess:
        return commands.idxflow(*arguments, env=environment, cwd=tmp_path)

    return call


def test_commands_read_a_store_of_the_format_before(old: Store, idxflow: Idxflow, tmp_path: Path):
    turns = json.loads(idxflow("registry", "history", "tiny", "--json").stdout)
    assert [(turn["outcome"], turn["before"], turn["after"]) for turn in turns] == [
        ("rolled back", 3, 2),
        ("forced", 2, 3),
        ("kept", 2, 2),
        ("promoted", 1, 2),
        ("promoted", None, 1),
    ]
    runs = json.loads(idxflow("runs", "list", "tiny", "--json").stdout)
    assert [r["state"] for r in runs] == ["failed", "kept", "unchanged", "promoted", "promoted"]
    assert json.loads(idxflow("status", "tiny", "--json").stdout)["datasets"][0]["champion"]["version"] == 2
    difference = json.loads(idxflow("registry", "diff", "tiny", "1", "2", "--json").stdout)
    assert difference["differences"]["training"]["epochs"] == {"a": 3, "b": 20}
    images = str(tmp_path / "tiny-source" / "t10k-images-idx3-ubyte.gz")
    answers = json.loads(idxflow("predict", "tiny", images, "--json").stdout)
    assert len(answers["rows"]) == 60
    assert idxflow("runs", "diff", "tiny", runs[3]["run"], runs[4]["run"]).returncode == 0
    assert idxflow("verify").stdout.startswith("ok: 1 data set, 21 entries, 3 versions, 10 ledger records")
    assert not (old.root / STORE_FILE).exists(), "reading changes nothing"


def assert_has_all_of(before: Any, after: Any, where: str) -> None:
    """Compare the values of two reports: fields may have been added since, and sentences reworded."""
    if isinstance(before, dict):
        assert isinstance(after, dict), where
        for key, value in before.items():
            assert_has_all_of(value, after[key], f"{where}, {key}")
    elif isinstance(before, list):
        assert len(before) == len(after), where
        for number, (value, other) in enumerate(zip(before, after, strict=True)):
            assert_has_all_of(value, other, f"{where}, {number}")
    elif isinstance(before, str) and " " in before:
        assert isinstance(after, str), where
    else:
        assert after == before, where


def test_reports_of_the_format_before_are_found_and_made_again(old: Store, idxflow: Idxflow):
    decided = [
        record["run"] for record in Ledger(old, "tiny").read("runs") if record["run"] in (record["report"] or "")
    ]
    assert len(decided) == 4
    for identity in decided:
        page = Path(idxflow("report", "tiny", identity).stdout.strip())
        before = json.loads((page.parent / "report.json").read_text())
        shutil.rmtree(page.parent)
        again = idxflow("report", "tiny", identity, "--json")
        assert again.returncode == 0, again.stderr
        after = json.loads(again.stdout)
        for part in ("verdict", "decision", "test"):
            assert_has_all_of(before[part], after[part], f"{part} of {identity}")
        names = [step["name"] for step in before["timing"]["steps"]]
        assert [step["name"] for step in after["timing"]["steps"]] == names
        assert [step["key"] for step in after["timing"]["steps"]] == [s["key"] for s in before["timing"]["steps"]]


def test_a_run_on_a_store_of_the_format_before_goes_on_from_its_champion(old: Store, idxflow: Idxflow, tmp_path: Path):
    outcome = run_without_prefect(old, dataset_file=str(tmp_path / "tiny.toml"), **SAME_AS_CHAMPION)
    assert (outcome["state"], outcome["champion"]) == ("unchanged", 2)
    assert all(step["reused"] for name, step in outcome["steps"].items() if name.startswith("fetch"))
    assert not outcome["steps"]["train"]["reused"]
    assert read_json(old.root / STORE_FILE)["format"] == FORMAT
    assert run_without_prefect(old, dataset_file=str(tmp_path / "tiny.toml"), **SAME_AS_CHAMPION)["steps"]["train"][
        "reused"
    ]
    assert (Ledger(old, "tiny").last("runs") or {})["format"] == FORMAT
    assert idxflow("rollback", "tiny", "--reason", "slower than before").returncode == 0
    assert (Registry(old, "tiny").champion() or pytest.fail("no champion")).number == 1
    assert idxflow("verify").returncode == 0


HISTORY_3 = [
    ("promoted", None, 1, True),
    ("promoted", 1, 2, True),
    ("kept", 2, 2, True),
    ("kept", 2, 2, True),
    ("forced", 2, 2, False),
    ("forced", 2, 3, True),
    ("rolled back", 3, 2, True),
    ("kept", 2, 2, True),
]


def history(idxflow: Idxflow) -> list[tuple[str, int | None, int | None, bool]]:
    """Return the decisions, oldest first."""
    turns = json.loads(idxflow("registry", "history", "tiny", "--json").stdout)[::-1]
    return [(turn["outcome"], turn["before"], turn["after"], turn["took_effect"]) for turn in turns]


def test_commands_read_a_store_of_format_3(old_3: Store, idxflow: Idxflow):
    before = {path: path.read_bytes() for path in old_3.root.rglob("*") if path.is_file()}
    assert history(idxflow) == HISTORY_3
    assert json.loads(idxflow("status", "tiny", "--json").stdout)["datasets"][0]["champion"]["version"] == 2
    shown = json.loads(idxflow("registry", "show", "tiny", "3", "--json").stdout)
    assert (shown["collected"], shown["damage"]) == (True, None)
    assert idxflow("verify").stdout.startswith("ok: 1 data set, ")
    assert not idxflow("gc", "tiny", "--dry-run", "--json").returncode
    assert {path: path.read_bytes() for path in before} == before, "reading changes nothing"


def test_a_store_of_format_3_is_decided_on_from_its_champion(old_3: Store, idxflow: Idxflow, tmp_path: Path):
    manifest = str(tmp_path / "tiny.toml")
    refused = idxflow("promote", "tiny", "3", "--force", "--reason", "the third again")
    assert (refused.returncode, "that of version 3 was removed by `idxflow gc`" in refused.stderr) == (1, True)
    assert run_without_prefect(old_3, dataset_file=manifest, **SAME_AS_CHAMPION)["state"] == "unchanged"
    assert idxflow("promote", "tiny", "1", "--force", "--reason", "the first again").returncode == 0
    assert read_json(old_3.root / STORE_FILE)["format"] == FORMAT
    outcome = run_without_prefect(old_3, dataset_file=manifest, **SAME_AS_CHAMPION | {"epochs": 19})
    assert (outcome["state"], outcome["version"], outcome["champion"]) == ("promoted", 6, 6)
    assert idxflow("rollback", "tiny", "--to", "1", "--reason", "slower than before").returncode == 0
    decisions = [("forced", 2, 1, True), ("promoted", 1, 6, True), ("rolled back", 6, 1, True)]
    assert history(idxflow) == HISTORY_3 + decisions
    numbers = [name for name in Ledger(old_3, "tiny").names("decisions") if is_decision(name)]
    assert numbers == ["00000014.json", "00000015.json", "00000016.json"], "on from the highest number of a decision"
    collected = json.loads(idxflow("gc", "tiny", "--keep-last", "1", "--json").stdout)["datasets"][0]
    assert collected["retired"] == [5]
    assert Registry(old_3, "tiny").standing() == Standing(17, 1)
    assert history(idxflow) == HISTORY_3 + decisions
    assert idxflow("verify").returncode == 0


def test_a_new_version_says_its_format(old: Store, tmp_path: Path):
    run_without_prefect(old, dataset_file=str(tmp_path / "tiny.toml"), hidden=[6])
    assert [version.format for version in Registry(old, "tiny").versions()] == [2, 2, 2, FORMAT]


USES = {
    "registry": ("registry", "history", "tiny"),
    "runs": ("runs", "list", "tiny"),
    "report": ("report", "tiny"),
    "reproduce": ("reproduce", "tiny"),
    "status": ("status",),
    "verify": ("verify",),
    "gc": ("gc",),
    "copy": ("copy", "store", "copied"),
    "predict": ("predict", "tiny", "tiny-source/t10k-images-idx3-ubyte.gz"),
    "export": ("export", "tiny"),
    "share": ("share", "card", "tiny"),
    "serve": ("serve", "--port", "0"),
    "diagnose": ("diagnose", "tiny"),
    "drift": ("drift", "tiny", "tiny-source", "--dataset-file", "tiny.toml"),
    "promote": ("promote", "tiny", "1", "--force", "--reason", "back to the first"),
    "rollback": ("rollback", "tiny", "--reason", "back to the first"),
    "run": ("run", "--dataset-file", "tiny.toml"),
    "validate": ("validate", "--dataset-file", "tiny.toml"),
    "backfill": ("backfill", "--dataset-file", "tiny.toml", "--from", "2026-11-01", "--to", "2026-11-30"),
    "tune": ("tune", "--dataset-file", "tiny.toml"),
    "watch": ("watch", "tiny-source", "--dataset-file", "tiny.toml", "--once"),
    "figures": ("figures", "tiny"),
    "suspects": ("suspects", "tiny"),
    "labels": ("labels", "add", "tiny", "labels.csv"),
    "lineage": ("lineage", "tiny"),
    "quarantine": ("quarantine", "list", "tiny"),
    "alerts": ("alerts", "list"),
}


@pytest.mark.remedies("storage.store_format:check:2")
@pytest.mark.parametrize("command", USES)
def test_a_store_of_a_later_version_is_refused_by_every_command(
    old: Store, idxflow: Idxflow, tmp_path: Path, command: str
):
    put_json_if_absent(old.root / STORE_FILE, {"format": FORMAT + 1, "idxflow": "7.1.0"})
    before = sorted(path for path in old.root.rglob("*"))
    refused = idxflow(*USES[command])
    assert refused.returncode == 1
    assert refused.stderr.endswith(
        f"idxflow: {old.root / STORE_FILE}: expected a store of format {FORMAT} or earlier; found format {FORMAT + 1}, "
        "written by idxflow 7.1.0; use that version or a later one, or choose another store with --store\n"
    )
    assert sorted(path for path in old.root.rglob("*")) == before
    shutil.copytree(old.root, tmp_path / "another", ignore=shutil.ignore_patterns(STORE_FILE))
    assert idxflow("verify", "--store", str(tmp_path / "another")).returncode == 0


@pytest.mark.remedies("storage.store_format:check")
@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 4}', b"\0" * 80])
def test_a_damaged_store_file_is_named_and_removing_it_helps(old: Store, idxflow: Idxflow, content: bytes):
    (old.root / STORE_FILE).write_bytes(content)
    refused = idxflow("verify")
    assert refused.returncode == 1
    assert "store.json: expected the format of the store; " in refused.stderr
    assert refused.stderr.endswith("; remove this file: the next run writes it again\n")
    (old.root / STORE_FILE).unlink()
    assert idxflow("verify").returncode == 0
