"""`idxflow lineage`: from a model back to its archives, from an archive forward to models, and after `gc`."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.commands.cli import run_command
from flows.dataset_in_store import DatasetInStore
from flows.lineage.asked import in_dataset
from flows.lineage.events import events_of
from flows.lineage.known import Known
from storage.copying import copy
from storage.drifts import Drifts
from storage.files import sha256_of
from storage.formats import idx
from storage.ledger import Ledger
from storage.prediction_log import Answers, LogOptions, PredictionLog
from storage.registry import Registry
from storage.retention import collect
from storage.store import Store
from tests.conftest import bars
from tests.support.memory_objects import MemoryObjects, cloud_store
from tests.support.old_stores import unpacked
from tests.support.runs import carried_out
from tests.support.servers import ROOT
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


@pytest.mark.remedies("flows.lineage.asked:lineage_of", "flows.lineage.asked:_unknown")
def test_what_is_unknown_is_one_sentence_with_what_there_is(shown: Shown):
    for words, said in {
        ("scanz",): "found 'scanz' (did you mean scans?); give one of these, a file as ./FILE",
        ("scanz", "v1"): "found 'scanz' (did you mean scans?); give one of these",
        ("digits",): "found 'digits'; run it first: `idxflow run digits --store ",
        ("scans", "v9"): "; give one of v1 to v3, or a role such as train-images",
        ("scans", "train-image"): "(did you mean train-images?)",
        ("scans", "train-images-2026-11-04.gz"): "(did you mean train-images-2026-11-0",
        ("scans", "\u202egnp.exe"): "found '\\u202egnp.exe'",
    }.items():
        (line,) = shown(*words, code=2)
        assert said in line
    assert shown("scans", "v3")


@pytest.mark.remedies(
    "flows.lineage.asked:_of_digest",
    "flows.lineage.asked:_of_digest:2",
    "flows.lineage.asked:_digests",
    "flows.lineage.asked:_of_export",
    "flows.lineage.asked:_of_export:2",
)
def test_a_digest_or_a_path_that_names_nothing_or_too_much_is_one_sentence(shown: Shown, days: Store, tmp_path: Path):
    (line,) = shown("0123456789abcdef", code=2)
    assert "found 0123456789abcdef, which is none; " in line
    (line,) = shown("scans/nothing.gz", code=2)
    assert "found nothing at scans/nothing.gz (No such file or directory)" in line
    (line,) = shown("./scans", code=2)
    assert "found a folder without it at scans" in line
    folder = tmp_path / "exported"
    folder.mkdir()
    described = folder / "model.json"
    described.write_text(json.dumps({"weights_digest": "f" * 64, "files": {}}))
    (line,) = shown("./exported", code=2)
    assert "found the weights ffffffffffffffff in exported, which no version of it has" in line
    weights = Registry(days, "scans").version(1).weights_digest
    described.write_text(json.dumps({"weights_digest": weights, "files": {}}))
    assert shown("./exported")[0].startswith("v1 of scans, ")
    described.write_text("[" * 100_000)
    assert "found a folder without it at exported" in shown("./exported", code=2)[0]
    # Another version whose weights begin alike.
    alike = weights[:10] + ("0" if weights[10] != "0" else "1") + weights[11:]
    registered_again(days, evaluation="e" * 32, weights_digest=alike)
    (line,) = shown(weights[:8], code=2)
    assert f"{weights[:8]} begins 2: v1 of scans {weights[:16]}, v4 of scans {alike[:16]}; type more of it" in line
    assert shown(weights[:12])[0].startswith("v1 of scans, ")


def test_without_a_store_there_is_nothing_to_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words, said in {"digits": "run it first: `idxflow run digits", __file__: "; found nothing; "}.items():
        assert run_command(["lineage", words, "--store", str(tmp_path / "none")]) == 2
        assert said in capsys.readouterr().err


def registered_again(store: Store, **changes: str) -> None:
    """Register the first version once more, with changes."""
    registry = Registry(store, "scans")
    names = ("model", "test_digest", "test_accuracy", "train_accuracy", "classes", "image_shape", "run")
    version = registry.version(1)
    registry.register(**{name: getattr(version, name) for name in (*names, "weights_digest")} | changes)


def test_another_version_with_the_same_weights_is_named(shown: Shown, days: Store):
    registered_again(days, evaluation="e" * 32)
    assert cells(shown("scans", "v1"), "same weights") == ["v4"]
    # The digest names the newest.
    weights = Registry(days, "scans").version(1).weights_digest
    assert shown(weights)[0] == "v4 of scans, was never champion"


def test_a_run_that_was_killed_before_the_ledger_had_it_leaves_its_entries(shown: Shown, days: Store):
    version = Registry(days, "scans").version(3)
    (record,) = (days.dataset("scans") / "ledger" / "runs").glob(f"*-{version.run}.json")
    record.unlink()
    lines = shown("scans", "v3")
    assert cells(lines, "weights") == [version.weights_digest]
    assert cells(lines, "model")[0].endswith(" rows")


def test_a_damaged_entry_is_said_to_be_damaged_and_ends_nothing(shown: Shown, days: Store):
    for path in (days.dataset("scans") / "2-splits").glob("*/entry.json"):
        path.write_text("{")
    assert any("(damaged; `idxflow verify` says more)" in line for line in shown("scans"))


def test_logged_predictions_are_counted_for_the_version_that_answered(shown: Shown, days: Store):
    log = PredictionLog(days, LogOptions())
    pixels, labels, sure = np.zeros((3, 9, 7), np.uint8), np.zeros(3, np.uint8), np.ones(3, np.float32)
    log.add("scans", Answers(["a", "b", "c"], datetime.now(UTC), pixels, labels, sure, 2))
    log.flush()
    assert cells(shown("scans", "v2"), "answered") == ["3 images in the log of predictions"]
    assert not cells(shown("scans", "v1"), "answered")


def test_a_store_in_object_storage_gives_the_same_answers(days: Store, tmp_path: Path):
    there = cloud_store(tmp_path / "cache", MemoryObjects("s3://bucket/store"))
    there.prepare()
    copy(days, there, "scans")
    for words in ("v2", "train-images-2026-11-02.gz"):
        answers = [in_dataset(Known(DatasetInStore(store, "scans")), words) for store in (days, there)]
        here, elsewhere = (answer.to_json() for answer in answers)
        for node in (*here["nodes"], *elsewhere["nodes"]):
            node["facts"].pop("where", None)
        assert here == elsewhere
        # Events name the bucket.
        assert {output.namespace for event in events_of(answers[1]) for output in event.outputs} == {"s3://bucket"}


def test_nothing_slow_is_imported(days: Store):
    slow = "{'tensorflow', 'prefect', 'pandas', 'scipy', 'matplotlib', 'pyarrow', 'openlineage'}"
    program = (
        "import sys; from flows.commands.cli import run_command; "
        f"code = run_command(['lineage', 'scans', '--store', {str(days.root)!r}]); "
        f"slow = {slow} & set(sys.modules); sys.exit(str(slow) if slow else code)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
