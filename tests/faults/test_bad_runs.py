"""The whole flow on bad archives, bad data and bad settings: the run fails as it says, and the champion stays.

Every case runs against a copy of one store with a champion. After each, everything that was in the store is byte for
byte what it was, and there is no new model, score or version. How a run ends is up to the flow's own steps; what
Prefect makes of that is tested with one case of each kind.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expectations import suites
from expectations.suites import Expectation, Suite
from flows.retrain import retrain
from flows.run import RunFailed
from storage.registry import Registry
from storage.store import FOLDERS, Store
from tests.support import badfiles
from tests.support.badfiles import (
    BRIGHTNESS,
    GOOD,
    MEANINGLESS,
    MISPLACED,
    READABLE,
    UNREADABLE,
    Misplaced,
    assert_says,
    fingerprint,
    spoiled,
)
from tests.support.runs import QUICK, message_of, run_without_prefect

pytestmark = pytest.mark.flow

OF_A_MODEL = tuple(f"bars/{part}/" for part in (*map(FOLDERS.get, ("normalize", "train", "evaluate")), "registry"))

# Compressed or not is the reader's business: tests/faults/test_bad_archives.py has both of each.
ARCHIVES = {
    name: data
    for name, (data, _) in UNREADABLE.items()
    if name.removeprefix("gzip: ") not in UNREADABLE or name[:4] != "gzip"
}


@pytest.fixture(scope="module")
def good(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a champion of the good data."""
    store = Store(tmp_path_factory.mktemp("store"))
    outcome = run(store, dataset_file=str(badfiles.write(tmp_path_factory.mktemp("good")).manifest))
    assert outcome["state"] == "promoted", outcome["sentence"]
    return store


@pytest.fixture
def store(good: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same for each test."""
    return Store(shutil.copytree(good.root, tmp_path_factory.mktemp("copy") / "store"))


def run(store: Store, **parameters: Any) -> dict[str, Any]:
    """Run the flow; a failed state of Prefect carries the same sentence as the outcome."""
    state = retrain(**{"store": str(store.root), "training": QUICK} | parameters, return_state=True)
    result = state.result(raise_on_failure=False)
    assert isinstance(result, RunFailed) == (state.type.value == "FAILED")
    outcome: dict[str, Any] = (result.outcome if isinstance(result, RunFailed) else result).to_json()
    assert state.message == message_of(outcome)
    return outcome


Refused = Callable[..., str]


@pytest.fixture
def refused(store: Store, tmp_path: Path) -> Refused:
    """Do the steps (or go another `way`) on changed data, which must fail as `kind`; return the sentence."""

    def call(
        kind: str,
        exit_code: int,
        changes: Mapping[str, Any] | None = None,
        manifest: str = "",
        way: Callable[..., dict[str, Any]] = run_without_prefect,
        **parameters: Any,
    ) -> str:
        if not parameters.keys() & {"dataset", "dataset_file"}:
            path = badfiles.write(tmp_path / "in", changes).manifest
            path.write_text(path.read_text() + manifest)
            parameters["dataset_file"] = str(path)
        before = fingerprint(store)
        outcome = way(store, **parameters)
        after = fingerprint(store)
        assert (outcome["error"]["kind"], outcome["error"]["exit_code"]) == (kind, exit_code), outcome["sentence"]
        assert outcome["state"] == ("refused" if exit_code in (3, 5) else "failed")
        assert not outcome["steps"].keys() & {"normalize", "train", "evaluate", "confirm"}
        assert {name: digest for name, digest in after.items() if name in before} == before
        assert not [name for name in after.keys() - before.keys() if name.startswith(OF_A_MODEL)]
        champion = Registry(store, "bars").champion()
        assert champion is not None
        assert champion.number == 1
        if outcome["report"]:
            assert Path(outcome["report"]).is_file()
        sentence: str = outcome["sentence"]
        return sentence

    return call


OTHER_DIGEST = f'[archives.train-images]\nsha256 = "{hashlib.sha256(READABLE["compressed hardly"]).hexdigest()}"\n'
"""Not that of the champion's archive: what is in the store needs no source."""


@pytest.mark.parametrize(
    ("kind", "exit_code", "case"),
    [
        ("FormatError", 3, {"changes": {"train-images": UNREADABLE["gzip: cut at half"][0]}}),
        ("DigestMismatch", 3, {"changes": {"train-images": UNREADABLE["a web page"][0]}, "manifest": OTHER_DIGEST}),
        ("ValidationFailed", 3, {"changes": spoiled("all images zero", "test")}),
        ("ConfigError", 2, {"dataset": "nothing"}),
        ("ConfigError", 2, {"manifest": "[training]\nepochs = 0\n"}),
    ],
)
def test_to_prefect_it_is_a_failed_run_with_the_same_sentence(
    refused: Refused, kind: str, exit_code: int, case: dict[str, Any]
):
    assert refused(kind, exit_code, way=run, **case)


@pytest.mark.parametrize("data", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_an_archive_that_cannot_be_read_ends_the_run_with_3(refused: Refused, data: bytes):
    assert_says(refused("FormatError", 3, {"train-images": data}), "bars: ", "train-images-idx3-ubyte")


@pytest.mark.parametrize("what", ["a web page", "one byte long", "gzip: cut at half", "gzip: wrong CRC", "a bomb"])
def test_an_archive_with_another_digest_than_declared_ends_the_run_with_3(refused: Refused, what: str):
    sentence = refused("DigestMismatch", 3, {"train-images": UNREADABLE[what][0]}, OTHER_DIGEST)
    assert_says(sentence, "bars: ", "train-images-idx3-ubyte.gz", "--source")


@pytest.mark.parametrize("case", MISPLACED.values(), ids=MISPLACED.keys())
def test_an_archive_that_is_not_what_it_stands_for_ends_the_run_with_3(refused: Refused, case: Misplaced):
    assert_says(refused("FormatError", 3, case.changes, case.manifest), "bars: ", case.file.split("-")[0])


@pytest.mark.parametrize("what", MEANINGLESS)
def test_spoiled_data_ends_the_run_with_3(refused: Refused, what: str):
    sentence = refused("ValidationFailed", 3, spoiled(what, "test"), BRIGHTNESS)
    assert_says(sentence, "bars: ", "t10k-", *MEANINGLESS[what].keys)


def test_spoiled_training_data_ends_the_run_with_3(refused: Refused):
    changes = {**spoiled("all images zero", "train"), **spoiled("all images zero", "test")}
    assert_says(refused("ValidationFailed", 3, changes), "train-images-idx3-ubyte.gz", "[limits] min_pixel_max")


@pytest.mark.parametrize("rows", [1, 2])
def test_fewer_rows_than_classes_end_the_run_with_3(refused: Refused, rows: int):
    changes = {role: array[:rows] for role, array in GOOD.items() if role.startswith("train")}
    assert_says(refused("ValidationFailed", 3, changes), f"expected at least 3, found {rows};", "classes")


def test_a_test_image_in_the_training_split_ends_the_run_with_3(refused: Refused):
    images = np.r_[GOOD["train-images"][:1], GOOD["test-images"][1:]]
    assert_says(refused("ValidationFailed", 3, {"test-images": images}), "at row 0", "[limits] max_leaked")


BROKEN = Expectation("broken", "ExpectColumnMeanToBeBetween", {"column": "nowhere", "min_value": 0}, "0")


@pytest.mark.parametrize(
    ("suite", "kind"),
    [
        (Suite("test", "row", ()), "IdxflowError"),
        (Suite("test", "row", (BROKEN,)), "IdxflowError"),
        (Suite("test", "row", (replace(BROKEN, kind="ExpectMiracle"),)), "AttributeError"),
    ],
    ids=["no expectation", "an unknown column", "Great Expectations raises"],
)
def test_when_checking_itself_fails_nothing_is_trained(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, suite: Suite, kind: str
):
    monkeypatch.setattr(suites, "images", lambda dataset, split: suite)
    # Data that no run has checked before: a kept verdict would need no check.
    images = GOOD["test-images"].copy()
    images[0, 0, 0] = ord(kind[0]) + len(suite.expectations)
    refused(kind, 1, {"test-images": images})


NAMES = ["../../etc", "a/b", ".", "", "x" * 300, "CON", "a\0b", "a\nb", "\u202edigits", "Digits", "digits.toml"]


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_that_is_none_ends_the_run_with_2(refused: Refused, tmp_path: Path, name: str):
    assert_says(refused("ConfigError", 2, dataset=name), "of the catalog", "--dataset-file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("surprise = 1\n", "surprise"),
        ("[training]\nepochs = 0\n", "expected training.epochs to be an integer from 1 to 10,000; found 0"),
        ("[training]\nlearning_rate = nan\n", "above 0 and at most 10; found nan"),
        ('[archives.train-images]\nsha256 = "d41d8cd98f00b204e9800998ecf8427e"\n', "64 hexadecimal digits"),
        ("[limits]\nmax_blank = 2\n", "limits.max_blank"),
        ("rows = " + "[" * 5000 + "\n", "TOML"),
    ],
    ids=["an unknown key", "no epochs", "a rate that is no number", "an MD5", "a share above 1", "brackets"],
)
def test_a_wrong_manifest_ends_the_run_with_2_and_reads_no_archive(
    refused: Refused, store: Store, tmp_path: Path, manifest: str, words: str
):
    badfiles.write(tmp_path)
    path = tmp_path / "bars.toml"
    path.write_text(path.read_text() + manifest)
    before = fingerprint(store)
    assert_says(refused("ConfigError", 2, dataset_file=str(path)), str(path), words)
    assert fingerprint(store) == before


def test_other_data_under_a_name_of_the_catalog_ends_the_run_with_2(refused: Refused, store: Store, tmp_path: Path):
    badfiles.write(tmp_path)
    path = tmp_path / "bars.toml"
    path.write_text(path.read_text().replace('"bars"', '"digits"'))
    assert_says(refused("ConfigError", 2, dataset_file=str(path)), "found 'digits'; choose another name")
    assert not store.dataset("digits").exists()


def test_labels_that_say_nothing_make_no_champion_even_where_no_limit_stops_them(store: Store, tmp_path: Path):
    lax = "[limits]\nmax_label_chance = 1\n[floors]\naccuracy = 0.9\n"
    changes = spoiled("labels shuffled", "train") | spoiled("labels shuffled", "test")
    before = fingerprint(store)
    outcome = run(store, dataset_file=str(badfiles.write(tmp_path, changes, lax).manifest))
    assert (outcome["state"], outcome["error"]["exit_code"], outcome["champion"]) == ("refused", 5, 1)
    champion = Registry(store, "bars").champion()
    assert champion is not None
    assert champion.number == 1
    versions = {name: digest for name, digest in before.items() if "registry/versions" in name}
    assert {name: digest for name, digest in fingerprint(store).items() if "registry/versions" in name} == versions


def test_what_is_only_unusual_is_trained_on_every_row(store: Store, tmp_path: Path):
    """Fewer rows than a batch, a column of pixels that never varies, an image that occurs twice."""
    changes = {role: array[:9].copy() for role, array in GOOD.items() if role.startswith("train")}
    changes["train-images"][:, :, 7] = 17
    changes["train-images"][6] = changes["train-images"][3]
    dataset = badfiles.write(tmp_path, changes)
    outcome = run(store, dataset_file=str(dataset.manifest), training=QUICK | {"validation_fraction": 0})
    assert outcome["state"] in ("promoted", "kept", "refused"), outcome["sentence"]
    assert outcome["error"] is None or outcome["error"]["kind"] == "ModelRefused"
    assert "over 9 rows" in outcome["steps"]["normalize"]["summary"]
    assert ", 1 warning" in outcome["steps"]["validate"]["summary"]
