"""`idxflow reproduce` as a user types it: the same machine makes the same again, and what differs is named first."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows import pipeline, retrain
from flows.commands.cli import run_command
from flows.dataset_in_store import DatasetInStore
from flows.reproducing import again, comparing
from flows.reproducing.again import Reproduction
from flows.reproducing.comparing import Comparison, compared, recorded_results
from flows.reproducing.recorded import recorded
from flows.run import Request
from storage import released
from storage.copying import copy
from storage.files import read_json, sealed
from storage.formats import quarantined, split_rows
from storage.records import RunRecord
from storage.runtime import progress
from storage.store import ENTRY, Store, plan_of
from storage.verify import verify
from tests.conftest import bars, repeated, write_tiny
from tests.support import sources
from tests.support.cloud_stores import Cloud
from tests.support.listed_archives import dated, write_listed
from tests.support.old_stores import unpacked
from tests.support.runs import QUICK, run_without_prefect, whole_run
from tests.support.tampering import writable_copy

FLOORS = "[floors]\naccuracy = 0.0\nclass_recall = 0.0\n"
MANIFEST = (
    FLOORS + '[quarantine]\nchecks = ["duplicate"]\n[slices]\nby = ["class", "ink"]\nmin_rows = 5\n'
    "[behaviour]\nimages = 10\nshift = { pixels = 1, changed = 1.0 }\n[gate]\nalpha_budget = 0.1\n"
)
STEPS = {
    "fetch train-images": {"sha256": "0" * 64},
    "decode train": {"digest": "0" * 64},
    "audit": {"digest": "0" * 64},
    "quarantine": {"released": 7},
    "validate": {"digest": "0" * 64},
    "normalize": {"digest": "0" * 64},
    "train": {"weights_digest": "0" * 64},
    "evaluate": {"correct": 1},
    "probe": {"images": 7},
    "evaluate champion": {"loss": 0.125},
}
"""What to change in the record of each step."""


@dataclasses.dataclass(frozen=True)
class World:
    store: Store
    manifest: Path
    first: RunRecord
    second: RunRecord
    """With an audit and a quarantine; compared with the champion, which is of the first."""


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    store = Store(folder / "store")
    store.prepare()
    manifest = write_tiny(folder, arrays=repeated(), manifest=MANIFEST).manifest
    first = whole_run(store, manifest, epochs=2, published=False).record
    second = whole_run(store, manifest, epochs=2, seed=2, audit=True, published=False).record
    yield World(store, manifest, first, second)
    shutil.rmtree(folder)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def idxflow(temporary: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(["reproduce", *words])
        printed = capsys.readouterr()
        assert not [*temporary.iterdir()]
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def once(world: World) -> Reproduction:
    """The second run, made again."""
    return again.reproduce(DatasetInStore(world.store, "tiny"), world.second.id)


def contents(store: Store) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.root.rglob("*") if path.is_file()}


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of a store, and seal it again."""
    values = read_json(path)
    change(values)
    path.chmod(0o644)
    path.write_bytes(sealed(values))


def ledger_file(store: Store, run: RunRecord) -> Path:
    (path,) = (store.root / "tiny" / "ledger" / "runs").glob(f"*{run.id}*.json")
    return path


def entry_of(store: Store, run: RunRecord, name: str) -> Path:
    step = next(step for step in run.steps if step.name == name)
    return store.entries("tiny", step.step) / step.key


def remade(
    store: Store, run: RunRecord, name: str, change: Callable[[dict[str, Any]], object], **record: object
) -> None:
    """Have a step of a run made from something else: its entry has another key then, which the ledger names."""
    old = entry_of(store, run, name)
    rewritten(old / ENTRY, lambda entry: (change(entry["made_from"]), entry["record"].update(record)))
    key = plan_of(read_json(old / ENTRY)).key
    old.rename(old.with_name(key))

    def name_it(values: dict[str, Any]) -> None:
        (step,) = (step for step in values["steps"] if step["key"] == old.name)
        step["key"] = key

    rewritten(ledger_file(store, run), name_it)


def comparison(store: Store, run: RunRecord, once: Reproduction) -> Comparison:
    """Compare what a store says of a run with what was made again in the reproduction of the same run."""
    found = recorded(DatasetInStore(store, "tiny"), run.id)
    lines = {line.step: line for line in once.comparison.lines}
    assert lines.keys() >= found.steps.keys()
    before = recorded_results(found)
    now = {
        step: comparing.Result(
            {line.what: line.now for line in once.comparison.lines if line.step == step and line.now},
            recorded_results(once.run)[step].made_from,
            recorded_results(once.run)[step].device,
        )
        for step in found.steps
    }
    return compared(found, before, now, None)


def test_a_run_is_the_same_again_and_nothing_in_the_store_changes(world: World, idxflow: Call):
    before = contents(world.store)
    code, out, err = idxflow("tiny", world.second.id, "--store", str(world.store.root))
    assert code == 0, (out, err)
    assert contents(world.store) == before
    lines = out.splitlines()
    assert lines[-1] == f"run {world.second.id} of tiny: reproduced: all 19 digests are the same"
    assert [line.split("  ")[0] for line in lines[:-1]] == [
        *(f"fetch {role} SHA-256" for role in ("train-images", "train-labels", "test-images", "test-labels")),
        *("decode train content", "decode test content", "audit tables", "quarantine rows set aside"),
        *("validate verdict", "normalize statistics", "normalize held-out rows", "train weights"),
        *("evaluate correct", "evaluate scores", "evaluate answers", "confirm answers", "probe answers"),
        *("evaluate champion correct", "evaluate champion scores", "evaluate champion answers", "decide rules"),
    ]
    assert all(line.endswith("  same") for line in lines[:-1])
    assert err == ""


def test_a_version_names_its_run_and_json_has_everything(world: World, idxflow: Call):
    code, out, _ = idxflow("tiny", "v1", "--store", str(world.store.root), "--json")
    values = json.loads(out)
    assert code == 0
    assert {name: values[name] for name in ("run", "reproduced", "first", "why", "failed", "notes", "folder")} == {
        "run": world.first.id,
        "reproduced": True,
        "first": None,
        "why": None,
        "failed": None,
        "notes": [],
        "folder": None,
    }
    weights = next(line for line in values["steps"] if line["step"] == "train")
    assert weights == {
        "step": "train",
        "what": "weights",
        "follows": "no",
        "same": True,
        **dict.fromkeys(("recorded", "now"), world.first.model.weights_digest),
    }


def test_a_data_set_of_the_catalog_is_reproduced(idxflow: Call, tmp_path: Path):
    store = Store(tmp_path / "store")
    assert run_without_prefect(store, epochs=1)["error"] is None
    code, out, err = idxflow("digits", "--store", str(store.root))
    assert (code, err) == (0, "")
    assert out.endswith(" of digits: reproduced: all 14 digests are the same\n")


@pytest.mark.parametrize("name", STEPS)
def test_the_first_step_with_another_digest_is_named(world: World, once: Reproduction, tmp_path: Path, name: str):
    store = writable_copy(world.store.root, tmp_path)
    entry = entry_of(store, world.second, name)
    rewritten(entry / ENTRY, lambda values: values["record"].update(STEPS[name]))
    found = comparison(store, world.second, once)
    assert found.first == name
    assert not found.reproduced
    assert [line.step for line in found.lines if line.same is False and line.step != name] == []
    # The entry reads well, so nothing says which of the two is right.
    assert found.sentence == (
        f"{name} differs first: code, libraries and processor are the same, so a file was changed, or the "
        f"computation is not deterministic: look at {entry}"
    )


def test_another_decision_is_named(world: World, idxflow: Call, tmp_path: Path):
    store = writable_copy(world.store.root, tmp_path)

    def change(values: dict[str, Any]) -> None:
        values["decision"]["rules"][0]["observed"] = "99.99%"

    rewritten(ledger_file(store, world.second), change)
    code, out, _ = idxflow("tiny", "latest", "--store", str(store.root))
    assert code == 7
    assert "decide differs first: code, libraries and processor are the same" in out.splitlines()[-1]


def test_the_cause_is_code_a_library_or_the_processor(world: World, once: Reproduction, tmp_path: Path):
    store = writable_copy(world.store.root, tmp_path)

    def change(made_from: dict[str, Any]) -> None:
        made_from["code"]["tasks.model.fitting"] = "0" * 16
        made_from["libraries"]["tensorflow"] = "2.0.0"
        made_from["parameters"]["epochs"] = 3

    remade(store, world.second, "train", change, weights_digest="0" * 64)
    # What has been made from these weights has other digests, too, but for no other reason.
    remade(store, world.second, "evaluate", lambda origin: origin["inputs"].update(weights="0" * 64), correct=1)
    rewritten(
        ledger_file(store, world.second), lambda values: values["environment"].update(processor="Old CPU: avx avx2")
    )
    found = comparison(store, world.second, once)
    assert [(line.step, line.follows) for line in found.lines if line.same is False] == [
        ("train", "no"),
        *[("evaluate", "yes")] * 2,
    ]
    assert found.why
    assert [each.name for each in found.why.code] == ["tasks.model.fitting"]
    assert found.sentence.startswith(
        "train differs first: the code of tasks.model.fitting changed, tensorflow 2.0.0 → "
    )
    assert ", epochs 3 → 2, another processor (Old CPU → " in found.sentence
    assert {each.name for each in found.changed} == {"tasks.model.fitting", "tensorflow"}


def test_the_same_result_of_other_code_is_reproduced_with_the_rows_released_then(
    world: World, idxflow: Call, tmp_path: Path
):
    store = writable_copy(world.store.root, tmp_path)
    aside = pq.read_table(entry_of(store, world.second, "quarantine") / quarantined.FILE).column("digest").to_pylist()
    assert released.release(store, "tiny", dict.fromkeys(aside, "today")) == 1
    remade(store, world.second, "train", lambda origin: origin["code"].update({"tasks.train": "0" * 16}))
    code, out, _ = idxflow("tiny", "latest", "--store", str(store.root))
    assert code == 0
    assert out.splitlines()[-1] == "without effect, these changed since: tasks.train"


def test_a_step_that_fails_now_is_named(world: World, idxflow: Call, tmp_path: Path):
    store = writable_copy(world.store.root, tmp_path)
    remade(store, world.second, "quarantine", lambda origin: origin["parameters"].update(max_share=0.0))
    code, out, _ = idxflow("tiny", "latest", "--store", str(store.root), "--json")
    assert code == 7
    values = json.loads(out)
    assert values["sentence"].startswith(
        "quarantine differs first: it fails now: tiny: expected at most 0% of the 120 rows of train to be set aside; "
    )
    assert (values["first"], values["why"], values["failed"]["step"]) == ("quarantine", None, "quarantine")
    assert {line["step"] for line in values["steps"] if line["same"]} == {
        *(name for name in STEPS if name.startswith(("fetch", "decode", "audit"))),
        *("fetch train-labels", "fetch test-images", "fetch test-labels", "decode test"),
    }


def test_an_older_run_says_what_it_did_not_record(world: World, once: Reproduction, tmp_path: Path):
    store = writable_copy(world.store.root, tmp_path)
    rewritten(entry_of(store, world.second, "train") / ENTRY, lambda entry: entry["record"].update(weights_digest="0"))
    rewritten(ledger_file(store, world.second), lambda values: values["environment"].pop("processor"))
    found = comparison(store, world.second, once)
    assert found.sentence.startswith("train differs first: code and libraries are the same, so a file was changed, or ")
    assert found.sentence.endswith("; not recorded: the processor, and another kind rounds differently")
    # An earlier run made it, on another machine.
    rewritten(
        ledger_file(store, world.second),
        lambda values: [step.update(reused=True) for step in values["steps"] if step["step"] == "train"],
    )
    assert comparison(store, world.second, once).sentence == found.sentence


def test_what_was_removed_is_left_out(world: World, idxflow: Call, tmp_path: Path):
    store = writable_copy(world.store.root, tmp_path)
    for run in (world.first, world.second):
        shutil.rmtree(entry_of(store, run, "train"))
    code, out, err = idxflow("tiny", "latest", "--store", str(store.root))
    assert code == 0
    # The decision has the digest of the weights.
    weights = world.second.model.weights_digest
    assert f"train weights               {weights[:12]}…   {weights[:12]}…   same" in out
    assert "evaluate champion" not in out
    assert "reproduced: all 16 digests are the same" in out
    assert "note: champion v1, which the model was compared with, was removed from the store" in err
    assert "note: removed from the store, or damaged, so not all of it can be compared: train" in err


@pytest.mark.remedies("flows.reproducing.scratch:_bring", "flows.reproducing.recorded:dataset_of")
def test_an_archive_that_is_gone_or_damaged_is_fetched_again(world: World, idxflow: Call, tmp_path: Path):
    store = writable_copy(world.store.root, tmp_path)
    shutil.rmtree(entry_of(store, world.second, "fetch train-images"))
    file = entry_of(store, world.second, "fetch test-labels") / "t10k-labels-idx1-ubyte.gz"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    words = ("tiny", world.second.id, "--store", str(store.root))
    code, _, err = idxflow(*words)
    assert code == 1
    assert f"expected the train-images of run {world.second.id} (" in err
    assert "it was removed from the store (" in err
    again_words = f"idxflow validate --dataset-file tiny.toml --store {store.root}"
    assert err.endswith(f"fetch it again, with --source FOLDER if it is elsewhere: `{again_words}`\n")
    validated(world, store)
    file.chmod(0o644)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, _, err = idxflow(*words)
    assert code == 1
    assert "t10k-labels-idx1-ubyte.gz: expected SHA-256 " in err
    # What says how they are read may be gone as well.
    validated(world, store)
    for name in ("decode train", "decode test", "validate"):
        shutil.rmtree(entry_of(store, world.second, name))
    code, _, err = idxflow(*words)
    assert code == 2
    command = f"idxflow reproduce tiny {world.second.id} --store {store.root} --dataset-file FILE"
    assert err.endswith(f"give the manifest that says it: `{command}`\n")
    code, out, err = idxflow(*words, "--dataset-file", str(world.manifest))
    assert code == 0
    assert "note: what the manifest decides in these steps is that of today's manifest" in err
    assert "digests that can be compared are the same; 3 cannot be compared" in out


@pytest.mark.remedies("flows.reproducing.recorded:_of_another_version")
def test_without_parameters_a_run_cannot_be_made_again(world: World, idxflow: Call, tmp_path: Path):
    store = writable_copy(world.store.root, tmp_path)
    rewritten(ledger_file(store, world.first), lambda values: values.pop("config"))
    words = ("--store", str(store.root))
    # What its training was made from has them, too.
    rewritten(ledger_file(store, world.first), lambda values: values["decision"].update(policy="another"))
    code, _, err = idxflow("tiny", world.first.id, *words)
    assert code == 2
    assert f"expected the declarations of run {world.first.id} of tiny, as this version records them; found " in err
    rewritten(ledger_file(store, world.first), lambda values: values["decision"].update(policy="better"))
    assert idxflow("tiny", world.first.id, *words)[0] == 0
    shutil.rmtree(entry_of(store, world.first, "train"))
    code, _, err = idxflow("tiny", world.first.id, *words)
    assert code == 2
    assert f"expected the training parameters of run {world.first.id} of tiny, as this version records them" in err
    assert err.endswith(
        f"another version of idxflow made it; give a later run: `idxflow runs list tiny {' '.join(words)}`\n"
    )
    assert recorded(DatasetInStore(store, "tiny"), world.second.id)


def validated(world: World, store: Store) -> None:
    outcome = run_without_prefect(store, dataset_file=str(world.manifest), to=pipeline.to_validation)
    assert outcome["state"] == "valid"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(world: World, idxflow: Call, temporary: Path, number: int, code: int):
    seen = []

    def stop(step: progress.Progress) -> None:
        if step.name == "train" and not seen:
            seen.extend(temporary.glob("idxflow-reproduce-*/tiny/5-models/.*.partial"))
            os.kill(os.getpid(), number)

    before = contents(world.store)
    with progress.listening(stop):
        # It checks that no temporary folder is left.
        assert idxflow("tiny", "latest", "--store", str(world.store.root))[0] == code
    assert seen
    assert contents(world.store) == before


@pytest.mark.remedies(
    "flows.reproducing.scratch:checked_folder",
    "flows.reproducing.scratch:checked_folder:2",
    "flows.reproducing.scratch:checked_folder:3",
    "flows.reproducing.scratch:_unwritable",
)
def test_the_scratch_store_can_be_kept(world: World, idxflow: Call, tmp_path: Path):
    words = ("tiny", "v1", "--store", str(world.store.root), "--keep")
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    for folder, expected, sentence in (
        ("full", 2, f"expected --keep to be a new or an empty folder; {full} is not empty; choose another"),
        ("full/file", 2, f"{full / 'file'} is a file; choose another"),
        ("full/file/in", 1, f"expected a scratch store that can be written; found File exists at {full / 'file'}"),
        (os.fsdecode(b"\xff"), 2, f"expected --keep to be a path in UTF-8; found '{tmp_path}/\\udcff'; choose another"),
        (str(world.store.root / "again"), 2, f"expected --keep outside the store {world.store.root}; found "),
    ):
        code, _, err = idxflow(*words, folder)
        assert code == expected
        assert sentence in err
    code, out, _ = idxflow(*words, "again")
    assert code == 0
    assert out.splitlines()[-1] == f"scratch store {tmp_path / 'again'}"
    assert not verify(Store(tmp_path / "again")).damage


def test_a_scratch_store_that_has_no_room_is_named(world: World, idxflow: Call, temporary: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        code, out, err = idxflow("tiny", "v1", "--store", str(world.store.root))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (1, "")
    assert f"expected a scratch store that can be written; found File too large at {temporary}/idxflow-repro" in err


def test_a_run_of_the_past_has_the_archives_of_then_also_in_parts(
    idxflow: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(split_rows, "PART_ROWS", 64)
    dataset = write_listed(tmp_path, bars(360, 100, 3, (9, 7)), (120, 120, 120))
    days = ("2026-11-01", "2026-11-08", "2026-11-15")
    manifest = dated(dataset, *days, more="[floors]\naccuracy = 0\nclass_recall = 0\n").manifest
    store = Store(tmp_path / "store")
    request = Request(dataset_file=str(manifest), store=str(store.root), as_of="2026-11-08", training=QUICK)
    state = retrain.carry_out(request, pipeline.to_decision, caller=pipeline.Directly())
    assert state.data.to_json()["state"] == "promoted"
    # Another manifest does not count.
    text = manifest.read_text(encoding="utf-8").replace('"bar 0"', '"no bar"')
    manifest.write_text(f"{text}\n[limits]\nmax_blank = 0.5\n", encoding="utf-8")
    code, out, err = idxflow("listed", "champion", "--store", str(store.root), "--dataset-file", str(manifest))
    assert code == 0
    assert out.endswith("of listed: reproduced: all 13 digests are the same\n")
    assert "not what the run used, which is what counts here: classes: the run used [" in err
    assert "; [limits] max_blank: the run used 0, the manifest now says 0.5" in err


@pytest.mark.remedies("flows.reproducing.recorded:recorded", "flows.reproducing.recorded:manifest_today")
def test_a_run_that_ended_early_is_compared_as_far_as_it_got(world: World, idxflow: Call, tmp_path: Path):
    store = writable_copy(world.store.root, tmp_path)
    arrays = repeated()
    arrays["test-images"][:] = arrays["test-images"][:1]
    manifest = write_tiny(tmp_path, arrays=arrays, manifest="[floors]\naccuracy = 0.0\n").manifest
    refused = run_without_prefect(store, dataset_file=str(manifest))
    assert refused["state"] == "refused"
    words = ("tiny", "latest", "--store", str(store.root))
    code, out, err = idxflow(*words)
    assert code == 0
    assert f"run {refused['run']} of tiny: reproduced: all 7 digests are the same" in out
    assert f"note: run {refused['run']} ended early, so only what it had done is compared: tiny: " in err
    (tmp_path / "other").mkdir()
    other = write_tiny(tmp_path / "other", name="other").manifest
    code, _, err = idxflow(*words, "--dataset-file", str(other))
    assert code == 2
    assert f"{other}: expected the manifest of tiny; found that of other; give the right one with --dataset-file" in err
    shutil.rmtree(tmp_path / "tiny-source")
    write_tiny(tmp_path, train=60, manifest="[floors]\naccuracy = 0.0\n")
    shutil.rmtree(tmp_path / "tiny-source")
    nothing = run_without_prefect(store, dataset_file=str(manifest))
    assert nothing["state"] == "failed"
    code, _, err = idxflow(*words)
    assert code == 2
    assert (
        f"run {nothing['run']} ended before that; give another one: `idxflow runs list tiny --store {store.root}`"
        in err
    )
    assert idxflow("tiny", refused["run"], *words[2:])[0] == 0


def test_stores_of_earlier_formats_say_what_they_did_not_record(idxflow: Call, tmp_path: Path):
    store = unpacked(2, tmp_path)
    code, out, _ = idxflow("tiny", "v2", "--store", str(store.root))
    assert code == 7
    sentence = out.splitlines()[-1]
    assert "of tiny: validate differs first: the code of expectations.findings, expectations.suites, " in sentence
    assert sentence.endswith(" changed; not recorded: the processor, and another kind rounds differently")


def test_a_store_in_object_storage_is_only_read(world: World, temporary: Path, tmp_path: Path):
    cloud = Cloud(tmp_path / "machines")
    copy(world.store, cloud.machine(), "tiny")
    there = cloud.machine("there")
    there.mends = False
    before = cloud.objects.contents()
    found = again.reproduce(DatasetInStore(there, "tiny"), "v1")
    assert found.comparison.sentence == "reproduced: all 16 digests are the same"
    after = cloud.objects.contents()
    assert {key: data for key, data in after.items() if "/leases/" not in key} == before
    assert not [*temporary.iterdir()]


def test_images_that_must_be_right_are_those_of_today(idxflow: Call, tmp_path: Path):
    arrays = bars(120, 30, 3, (9, 7))
    manifest = write_tiny(tmp_path, manifest=f'{FLOORS}[behaviour]\nmust_be_right = "checked"\n').manifest
    image = tmp_path / "checked" / "bar 0" / "first.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(sources.png(arrays["test-images"][0]))
    store = Store(tmp_path / "store")
    job = whole_run(store, manifest, epochs=2, published=False)
    words = ("tiny", job.record.id, "--store", str(store.root))
    code, out, err = idxflow(*words)
    assert code == 0, (out, err)
    assert "the images that must be right are not in the store, and no manifest says where they are" in err
    words = (*words, "--dataset-file", str(manifest))
    code, out, err = idxflow(*words)
    assert code == 0, (out, err)
    assert "the images that must be right are not in the store; those of today in checked are taken" in err
    assert "probe answers" in out
    image.write_bytes(sources.png(arrays["test-images"][1]))
    code, out, _ = idxflow(*words, "--json")
    found = json.loads(out)
    assert (code, found["first"]) == (7, "probe")
    assert [each["name"] for each in found["why"]["parameters"]] == ["named_images"]
