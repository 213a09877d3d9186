"""`idxflow verify`: whatever is damaged is named, what is only left over is told from it, nothing is changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.commands.cli import run_command
from storage.files import put_json_if_absent, sealed, unsealed
from storage.registry import Registry
from storage.store import ENTRY, Store
from storage.verify import verify
from tests.support.stores import (
    DATASET,
    add,
    decided_in_format_3,
    fingerprint,
    pointed_in_format_3,
    retrain,
)


@pytest.fixture
def filled(store: Store) -> Store:
    for number in (1, 2, 3):
        retrain(store, number, promoted=number < 3)
    return store


def part(store: Store, name: str) -> Path:
    """Return the first thing with a final name in a folder of the data set."""
    return min(path for path in (store.dataset(DATASET) / name).iterdir() if not path.name.startswith("."))


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))


def test_a_good_store_has_nothing_to_say(filled: Store):
    before = fingerprint(filled)
    verdict = verify(filled)
    assert (verdict.findings, verdict.entries, verdict.versions, verdict.records) == ((), 12, 3, 6)
    assert verdict.bytes > 12 * 1000
    assert fingerprint(filled) == before


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


DAMAGE: dict[str, tuple[str, Callable[[Store], object], str]] = {
    "a flipped bit": ("2-splits", lambda s: edit(part(s, "2-splits") / "data.bin", flip), "expected SHA-256"),
    "a cut file": ("5-models", lambda s: edit(part(s, "5-models") / "data.bin", lambda d: d[:-1]), "bytes; found"),
    "a file that is gone": ("5-models", lambda s: (part(s, "5-models") / "data.bin").unlink(), "No such file"),
    "a file too many": ("2-splits", lambda s: (part(s, "2-splits") / "new.bin").touch(), "found new.bin as well"),
    "an edited description": (
        "6-evaluations",
        lambda s: edit(part(s, "6-evaluations") / ENTRY, lambda d: d.replace(b'"weights ', b'"weight 1')),
        "do not have the SHA-256",
    ),
    "no description": ("2-splits", lambda s: (part(s, "2-splits") / ENTRY).unlink(), "cannot be read"),
    "an entry in another's place": (
        "2-splits",
        lambda s: part(s, "2-splits").rename(s.dataset(DATASET) / "2-splits" / ("0" * 32)),
        "expected the entry of",
    ),
    "a model entry that is gone": (
        "registry",
        lambda s: shutil.rmtree(part(s, "5-models")),
        "expected its train entry",
    ),
    "an edited version": (
        "registry",
        lambda s: edit(part(s, "registry/versions"), lambda d: d.replace(b"0.9", b"1.0")),
        "do not have the SHA-256",
    ),
    "a version that is gone": ("registry", lambda s: part(s, "registry/versions").unlink(), "that a decision names"),
    "a hint written by hand": (
        "registry/champion.json",
        lambda s: (s.dataset(DATASET) / "registry/champion.json").write_text('{"version": 9}'),
        "do not have the SHA-256",
    ),
    "a hint to a decision that is gone": (
        "registry/champion.json",
        lambda s: (s.dataset(DATASET) / "ledger/decisions/00000003.json").unlink(),
        "expected the champion after a decision in the ledger; found 2 after decision 3",
    ),
    "a hint to another champion": (
        "registry/champion.json",
        lambda s: edit(s.dataset(DATASET) / "registry/champion.json", lambda d: sealed({"decision": 3, "version": 1})),
        "found 1 after decision 3",
    ),
    "a cut hint": ("registry", lambda s: edit(s.dataset(DATASET) / "registry/champion.json", lambda d: d[:9]), ""),
    "a decision after another champion": (
        "ledger/decisions/00000003.json",
        lambda s: edit(
            s.dataset(DATASET) / "ledger/decisions/00000003.json",
            lambda d: sealed(unsealed(d) | {"previous": 1, "champion": 1}),
        ),
        "expected the champion of the decision before it; found 1, where the decision before it has 2",
    ),
    "a changed run": ("ledger", lambda s: edit(part(s, "ledger/runs"), lambda d: d.replace(b"run-1", b"run-9")), "SHA"),
    "a cut decision": ("ledger", lambda s: edit(part(s, "ledger/decisions"), lambda d: d[:30]), ""),
    "a link instead of a folder": (
        "5-models",
        lambda s: (part(s, "5-models").parent.rename(s.root / ".away"), link(s, "5-models", s.root / ".away")),
        "symbolic link",
    ),
    **{
        f"a file instead of {name}": (
            name,
            lambda s, name=name: (shutil.rmtree(s.dataset(DATASET) / name), (s.dataset(DATASET) / name).touch()),
            "expected a folder; found a file",
        )
        for name in ("5-models", "registry", "registry/versions", "ledger", "ledger/runs", "ledger/decisions")
    },
    "a link instead of a file": (
        "2-splits",
        lambda s: ((p := part(s, "2-splits") / "data.bin").rename(s.root / ".file"), p.symlink_to(s.root / ".file")),
        "symbolic link",
    ),
}


def link(store: Store, name: str, target: Path) -> None:
    (store.dataset(DATASET) / name).symlink_to(target)


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(filled: Store, what: str):
    place, damage, problem = DAMAGE[what]
    damage(filled)
    damaged = verify(filled).damage
    assert damaged, what
    assert any(place in f.where and problem in f.problem for f in damaged), damaged
    assert all("\n" not in f.problem and f.remedy for f in damaged)


def test_what_a_dead_run_left_is_no_damage(filled: Store):
    folder = filled.dataset(DATASET)
    (folder / "5-models" / ".abc.partial").mkdir()
    (folder / "2-splits" / ".abc.discarded").mkdir()
    (folder / "registry" / "versions" / ".00000004.json.1.ab.tmp").touch()
    (folder / "ledger" / "runs" / ".x.json.1.ab.tmp").touch()
    verdict = verify(filled)
    assert not verdict.damage
    assert len(verdict.leftovers) == 4


def test_the_unfinished_work_of_a_living_run_is_no_leftover(filled: Store):
    (filled.dataset(DATASET) / "5-models" / ".abc.partial").mkdir()
    with filled.in_use(DATASET):
        assert verify(filled).findings == ()
    assert len(verify(filled).leftovers) == 1


def test_the_model_of_a_retired_version_may_be_missing(filled: Store):
    registry = Registry(filled, DATASET)
    registry.retire([1], registry.standing())
    model = filled.entries(DATASET, "train") / registry.version(1).model
    shutil.rmtree(model)
    assert verify(filled).findings == ()
    assert registry.retired(registry.version(1))
    retrain(filled, 1, promoted=False)
    assert not registry.retired(registry.version(1)), "trained again, it can be used again"


def test_the_model_of_a_version_retired_in_format_3_may_be_missing(filled: Store):
    registry = Registry(filled, DATASET)
    put_json_if_absent(filled.dataset(DATASET) / "registry" / "retired" / "00000001.json", {"time": ""})
    assert not registry.retired(registry.version(1)), "its model was not removed yet"
    shutil.rmtree(filled.entries(DATASET, "train") / registry.version(1).model)
    assert verify(filled).findings == ()
    assert registry.retired(registry.version(1))
    add(filled, "train", 1)
    assert not registry.retired(registry.version(1)), "trained again, it can be used again"


def test_a_hint_that_is_missing_or_behind_is_no_damage(filled: Store):
    path = filled.dataset(DATASET) / "registry" / "champion.json"
    edit(path, lambda _: sealed({"decision": 1, "version": 1}))
    assert (verify(filled).findings, Registry(filled, DATASET).champion().number) == ((), 2)
    path.unlink()
    assert (verify(filled).findings, Registry(filled, DATASET).champion().number) == ((), 2)


def test_a_decision_that_is_missing_is_remarked_on(filled: Store):
    (filled.dataset(DATASET) / "ledger" / "decisions" / "00000002.json").unlink()
    assert [(f.kind, Path(f.where).name, f.problem) for f in verify(filled).findings] == [
        ("remark", "00000003.json", "expected decision 2 before it; found none")
    ]
    assert Registry(filled, DATASET).champion().number == 2
    retrain(filled, 4)
    assert Registry(filled, DATASET).champion().number == 4


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.write_text('{"version": 9}'), "expected an existing version; found 9"),
        (lambda path: path.write_text("{"), "expected the champion's version number"),
        (lambda path: path.unlink(), "expected the champion's version; the file is gone"),
    ],
)
def test_a_pointer_of_format_3_that_is_damaged_is_named(store: Store, spoil: Callable[[Path], object], problem: str):
    for number in (1, 2):
        retrain(store, number)
    folder = store.dataset(DATASET)
    shutil.rmtree(folder / "ledger" / "decisions")
    for number in (1, 2):
        record = {"outcome": "promoted", "version": number, "champion": number, "previous": number - 1 or None}
        decided_in_format_3(store, DATASET, f"run-{number}", record)
    pointed_in_format_3(store, DATASET, 2)
    assert verify(store).findings == ()
    spoil(folder / "registry" / "champion.json")
    (damage,) = verify(store).damage
    assert (damage.where, problem in damage.problem) == (str(folder / "registry" / "champion.json"), True), damage


def test_a_file_that_cannot_be_read_is_not_said_to_be_good(filled: Store):
    if os.geteuid() == 0:
        # Permissions do not stop root; a folder in a file's place is unreadable to anyone.
        path = filled.dataset(DATASET) / "registry" / "champion.json"
        path.unlink()
        path.mkdir()
    else:
        part(filled, "ledger/runs").chmod(0)
    assert verify(filled).damage


def test_verify_exits_with_1_on_damage_and_says_what(filled: Store, capsys: pytest.CaptureFixture):
    assert run_command(["verify", "--store", str(filled.root)]) == 0
    assert capsys.readouterr().out.startswith("ok: 1 data set, 12 entries, 3 versions, 6 ledger records")
    path = part(filled, "5-models") / "data.bin"
    edit(path, lambda data: data[:-1])
    assert run_command(["verify", DATASET, "--store", str(filled.root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert str(path) in lines[0]
    assert "run the same command again" in lines[0]
    assert lines[-1].startswith("DAMAGED:")


def test_verify_speaks_json(filled: Store, capsys: pytest.CaptureFixture):
    (filled.dataset(DATASET) / "5-models" / ".abc.partial").mkdir()
    edit(part(filled, "5-models") / "data.bin", lambda data: data[:-1])
    assert run_command(["verify", "--store", str(filled.root), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["entries"], len(report["damage"]), len(report["leftovers"])) == (12, 1, 1)
    assert report["damage"][0].keys() == {"path", "problem", "remedy"}


@pytest.mark.parametrize("command", ["verify", "gc"])
def test_no_store_and_no_such_data_set_are_wrong_usage(store: Store, command: str, capsys: pytest.CaptureFixture):
    assert run_command([command, "--store", str(store.root / "none")]) == 2
    assert "found nothing" in capsys.readouterr().err
    assert run_command([command, "mnist", "--store", str(store.root)]) == 2
    assert "run it first: `idxflow run mnist" in capsys.readouterr().err


def test_verify_needs_neither_tensorflow_nor_prefect_nor_numpy(filled: Store):
    code = (
        "import sys; from pathlib import Path; from storage.store import Store; from storage.verify import verify\n"
        "print(len(verify(Store(Path(sys.argv[1]))).findings), sorted({'numpy', 'pyarrow', 'prefect', 'tensorflow'}"
        " & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(filled.root)]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=240)
    assert process.stdout == "0 []\n"
