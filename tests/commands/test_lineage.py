"""`idxflow lineage`: from a model back to its archives, from an archive forward to models, and after `gc`."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.commands.cli import run_command
from storage.drifts import Drifts
from storage.files import sha256_of
from storage.formats import idx
from storage.ledger import Ledger
from storage.registry import Registry
from storage.retention import collect
from storage.store import Store
from tests.conftest import bars
from tests.support.old_stores import unpacked
from tests.support.runs import carried_out
from tests.support.tampering import writable_copy

Shown = Callable[..., list[str]]
DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")


def write_days(folder: Path, first: int, last: int) -> Path:
    """Write a manifest of the training archives of some days, and of one test set; return it."""
    source = folder / "scans"
    source.mkdir(exist_ok=True)
    order = np.random.default_rng(5).permutation(180)
    # Each day has other labels, too.
    arrays = {role: a[order] if role.startswith("train") else a for role, a in bars(180, 30, 3, (9, 7)).items()}
    roles: dict[str, list[str]] = {}
    for role, array in arrays.items():
        pieces = np.split(array, 3) if role.startswith("train") else [array]
        for number, piece in enumerate(pieces):
            name = f"{role}-{DAYS[number] if len(pieces) > 1 else 'all'}.gz"
            (source / name).write_bytes(gzip.compress(idx.encode(piece), mtime=0))
            if len(pieces) == 1 or first <= number <= last:
                roles.setdefault(role, []).append(name)
    lines = ['name = "scans"\nclasses = ["a", "b", "c"]\nimage_shape = [9, 7]\nsource = "scans"\n']
    lines += [f'[[archives.{role}]]\nfile = "{name}"\n' for role, names in roles.items() for name in names]
    manifest = folder / "scans.toml"
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of three runs: on day 1, on days 1 and 2, and on days 2 and 3 with other weights."""
    folder = tmp_path_factory.mktemp("lineage")
    store = Store(folder / "store")
    for first, last in ((0, 0), (0, 1), (1, 2)):
        carried_out(store, write_days(folder, first, last), seed=last + 1)
    return folder


@pytest.fixture
def days(three_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of that store; the archives are beside it."""
    shutil.copytree(three_runs / "scans", tmp_path / "scans")
    monkeypatch.chdir(tmp_path)
    return writable_copy(three_runs / "store", tmp_path)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], days: Store) -> Shown:
    """Call the command on that store; return its lines."""

    def call(*words: str, code: int = 0) -> list[str]:
        capsys.readouterr()
        assert run_command(["lineage", *words, "--store", str(days.root)]) == code
        out, errors = capsys.readouterr()
        return (errors if code else out).splitlines()

    return call


def values(shown: Shown, *words: str) -> dict[str, Any]:
    (line,) = shown(*words, "--json")
    found: dict[str, Any] = json.loads(line)
    ids = {node["id"] for node in found["nodes"]}
    assert {*found["subjects"]} <= ids
    assert {end for edge in found["edges"] for end in (edge["from"], edge["to"])} <= ids
    return found


def cells(lines: list[str], label: str) -> list[str]:
    """Return the second column of the lines with this first one."""
    return [line.split("  ", line.count("  "))[-1].strip() for line in lines if line.strip().startswith(f"{label}  ")]


def champion(store: Store) -> int:
    return (Registry(store, "scans").champion() or pytest.fail("no champion")).number


def test_a_model_is_traced_back_to_every_archive_and_forward_to_what_became_of_it(shown: Shown, days: Store):
    lines = shown("scans", "v2")
    assert lines[0].startswith("v2 of scans, ")
    assert [line.split(",")[0].split()[-1] for line in lines if line.strip().startswith("train-images ")] == [
        f"train-images-{day}.gz" for day in DAYS[:2]
    ]
    assert [line.split(",")[0].split()[-1] for line in lines if line.strip().startswith("test-labels ")] == [
        "test-labels-all.gz"
    ]
    text = "\n".join(lines)
    second = Ledger(days, "scans").read("runs")[1]
    assert f"run             {second['run']}, " in text
    assert "by test" in text
    assert "seed 2" in text
    assert "120 rows, digest " in text
    assert Registry(days, "scans").version(2).weights_digest in text
    assert f"report            {days.root}/scans/7-reports/{second['run']}" in text
    assert "  decision " in text


def test_json_has_the_same_as_nodes_and_edges(shown: Shown, days: Store):
    found = values(shown, "scans", "2")
    assert found["subjects"] == ["version:scans/2"]
    by_id = {node["id"]: node for node in found["nodes"]}
    edges = {(edge["from"].partition(":")[0], edge["to"].partition(":")[0]) for edge in found["edges"]}
    assert {
        *(("archive", "split"), ("split", "normalization"), ("split", "model"), ("normalization", "model")),
        *(("model", "version"), ("evaluation", "version"), ("version", "decision"), ("version", "report")),
        *(("split", "validation"), ("run", "model"), ("run", "archive")),
    } <= edges
    archives = [node["facts"] for node in by_id.values() if node["kind"] == "archive"]
    assert len(archives) == 6
    for facts in archives:
        assert facts["sha256"] == sha256_of(Path("scans") / facts["file"])
        assert (
            facts["payload"]
            == hashlib.sha256(gzip.decompress((Path("scans") / facts["file"]).read_bytes())).hexdigest()
        )
    assert sorted(facts["rows"] for facts in archives) == [30, 30, 60, 60, 60, 60]
    model = next(node["facts"] for node in by_id.values() if node["kind"] == "model")
    assert model["made_from"]["code"]
    assert model["made_from"]["parameters"]["seed"] == 2
    assert model["weights_digest"] == by_id["version:scans/2"]["facts"]["weights_digest"]


def test_each_archive_names_the_models_that_saw_it_and_no_others(shown: Shown, days: Store):
    newest = champion(days)
    for day, trained in zip(DAYS, ([1, 2], [2, 3], [3]), strict=True):
        lines = shown("scans", f"train-images-{day}.gz")
        assert cells(lines, "trained on it") == [", ".join(f"v{number}" for number in trained)]
        assert cells(lines, "in use now") == [f"v{newest}" if newest in trained else "none of them"]
        assert not cells(lines, "tested on it")
    lines = shown("scans", "test-images")
    assert cells(lines, "tested on it") == ["v1, v2, v3"]
    assert not cells(lines, "trained on it")


def test_when_each_model_was_champion_is_said_also_after_a_promotion_by_hand_and_a_rollback(shown: Shown, days: Store):
    words = ("--reason", "a try", "--store", str(days.root))
    before = champion(days)
    other = 2 if before != 2 else 1
    assert run_command(["promote", "scans", str(other), "--force", *words]) == 0
    assert run_command(["rollback", "scans", *words]) == 0
    assert champion(days) == before
    lines = shown("scans", str(other))
    assert lines[0] == f"v{other} of scans, was champion before"
    assert any(f", then v{before}" in line for line in cells(lines, "champion"))
    assert any(line.endswith("a try (command line)") for line in lines)
    lines = shown("scans")
    assert lines[0].startswith(f"v{before} of scans, the champion since ")
    assert cells(lines, "champion")[-1].endswith(" until now")
    # A file says it, too.
    lines = shown("scans/train-images-2026-11-02.gz")
    assert cells(lines, "were champion")


def test_a_role_with_several_archives_answers_for_each(shown: Shown):
    lines = shown("scans", "train-images")
    assert lines[0] == "2 archives"
    assert cells(lines, "trained on it") == ["v2, v3", "v3"]
    assert len(values(shown, "scans", "train-images")["subjects"]) == 2


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_of_this_machine_is_found_by_its_contents_compressed_or_not(shown: Shown, tmp_path: Path, packed: bool):
    original = Path("scans/train-images-2026-11-01.gz")
    data = gzip.decompress(original.read_bytes())
    other = tmp_path / "found on a disk.bin"
    # Compressed again, it is another file with the same contents.
    other.write_bytes(gzip.compress(data, 1, mtime=5) if packed else data)
    assert sha256_of(other) != sha256_of(original)
    lines = shown(str(other))
    assert lines[0] == "train-images-2026-11-01.gz, train-images of scans"
    assert cells(lines, "trained on it") == ["v1, v2"]


def test_a_file_that_no_run_has_used_is_an_answer(shown: Shown, tmp_path: Path):
    (tmp_path / "new.gz").write_bytes(gzip.compress(b"new"))
    digest = sha256_of(tmp_path / "new.gz")
    assert shown("./new.gz") == [f"new.gz, sha256 {digest}", "  no run in this store has used it"]
    assert values(shown, "./new.gz")["file"] == {"path": "new.gz", "sha256": digest}
    assert values(shown, "./new.gz")["subjects"] == []


def test_a_digest_or_its_beginning_names_a_model_or_an_archive(shown: Shown, days: Store):
    weights = Registry(days, "scans").version(3).weights_digest
    assert shown(weights[:8])[0].startswith("v3 of scans, ")
    assert shown("scans", weights.upper())[0].startswith("v3 of scans, ")
    archive = Path("scans/test-labels-all.gz")
    assert shown(sha256_of(archive)[:12])[0] == "test-labels-all.gz, test-labels of scans"
    payload = hashlib.sha256(gzip.decompress(archive.read_bytes())).hexdigest()
    assert shown(payload)[0] == "test-labels-all.gz, test-labels of scans"


def test_an_exported_model_is_found_by_what_it_says_of_itself(shown: Shown, days: Store, tmp_path: Path):
    weights = Registry(days, "scans").version(2).weights_digest
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.keras").write_bytes(b"a model")
    described = {"weights_digest": weights, "files": {"model.keras": sha256_of(folder / "model.keras")}}
    (folder / "model.json").write_text(json.dumps(described))
    assert shown(str(folder))[0].startswith("v2 of scans, ")
    assert shown(str(folder / "model.keras"))[0].startswith("v2 of scans, ")


def test_what_gc_removed_is_told_from_the_ledger(shown: Shown, days: Store):
    words = ("--reason", "a try", "--store", str(days.root))
    for number in {2, 1} - {champion(days)}:
        assert run_command(["promote", "scans", str(number), "--force", *words]) == 0
    if champion(days) != 1:
        assert run_command(["rollback", "scans", "--to", "1", *words]) == 0
    # Then v2 is neither champion nor new, and did not lead to the champion.
    assert collect(days, "scans", keep_last=1).retired == (2,)
    lines = shown("scans", "2")
    assert lines[0] == "v2 of scans, was champion before"
    assert cells(lines, "removed") == ["`idxflow gc` has removed the files of v2; the ledger keeps what is above"]
    assert cells(lines, "train-images") == ["2 archives, no longer known (removed by `idxflow gc`)"]
    assert "4 epochs" not in cells(lines, "model")
    assert cells(lines, "model")[0].startswith("2 epochs, ")
    model = next(node for node in values(shown, "scans", "2")["nodes"] if node["kind"] == "model")
    assert model["state"] == "removed"
    # The archive of the first day is still known from v1; whether v2 saw it is not.
    lines = shown("scans", "train-images-2026-11-01.gz")
    assert cells(lines, "trained on it") == ["v1"]
    assert lines[-1] == (
        "not known           the archives of 1 run are not known, because `idxflow gc` has removed their lists"
    )


def test_findings_of_drift_are_among_the_consequences(shown: Shown, days: Store):
    Drifts(days, "scans").note(champion(days), True, {"sentence": "the strokes are thinner", "from": "/new"})
    assert cells(shown("scans"), "drift") == ["the strokes are thinner"]


@pytest.mark.parametrize("number", [2, 3])
def test_stores_of_earlier_formats_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int):
    store = unpacked(number, tmp_path)
    for words in (["tiny"], ["tiny", "v1"], ["tiny", "train-images"], ["tiny", "3", "--json"]):
        assert run_command(["lineage", *words, "--store", str(store.root)]) == 0
    out = capsys.readouterr().out
    assert "train-images-idx3-ubyte.gz, sha256 " in out
    assert "trained on it " in out
