"""The log of predictions, and the labels that come later: through a site, the command, and what `status` shows."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.commands.cli import run_command
from flows.web.served import Site
from storage import later_labels, prediction_log
from storage.errors import DamagedEntry
from storage.prediction_log import MERGED_AT, Answers, LogOptions, PredictionLog, read
from storage.store import Store
from storage.verify import verify
from tasks.serving.predict import load_champion
from tests.support.blobs import SHAPE, blobs, store_with_champion
from tests.support.memory_objects import cloud_store
from tests.support.sites import served
from tests.support.stores import retrain

ARRAYS = blobs()
IMAGES = ARRAYS["test-images"]
DAY = timedelta(days=1)


class Clock:
    """A clock that a test sets."""

    now = datetime(2026, 11, 30, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_with_champion(tmp_path_factory.mktemp("logged")).root


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(trained, tmp_path / "store"))


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    """A store with the data set `tiny`, without a model."""
    store = Store(tmp_path / "empty")
    store.prepare()
    retrain(store, 1)
    return store


def answers(clock: Clock, *ids: str, images: np.ndarray = IMAGES) -> Answers:
    count = len(ids)
    return Answers(ids, clock.now, images[:count], np.arange(count, dtype=np.uint8), np.ones(count, np.float32), 1)


def files(store: Store) -> list[str]:
    return [found.name for found in store.objects.list("tiny/predictions").objects]


def ids(store: Store, since: str = "") -> list[str]:
    return read(store, "tiny", ("id",), since)["id"].to_pylist()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    return buffer.getvalue()


def test_by_default_nothing_is_kept(store: Store):
    with served(Site(store)) as client:
        client.post("/v1/tiny/predict", content=npy(), headers={"content-type": "application/x-npy"})
    assert files(store) == []


def asked_twice(store: Store) -> tuple[list[str], list[str], str]:
    """Ask a site about all images twice; return the ids of both, and the metrics afterwards."""
    log, own = PredictionLog(store, LogOptions(images=True)), [f"mine-{row}" for row in range(30)]
    with served(Site(store, log=log)) as client:
        client.post("/v1/tiny/predict", json={"images": IMAGES.tolist(), "ids": own})
        answer = client.post("/v1/tiny/predict", content=npy(), headers={"content-type": "application/x-npy"}).json()
        log.flush()
        metrics = client.get("/metrics").text
    return own, [one["id"] for one in answer["predictions"]], metrics


def test_a_site_keeps_what_it_answers(store: Store):
    expected = load_champion("tiny", store).predict(IMAGES)
    own, given, metrics = asked_twice(store)
    assert "idxflow_log_rows_total 60.0" in metrics
    assert "idxflow_log_dropped_total 0.0" in metrics
    assert len({*given}) == 30
    table = read(store, "tiny", (*prediction_log.COLUMNS, *prediction_log.IMAGE_COLUMNS))
    assert table["id"].to_pylist() == own + given
    assert table["label"].to_pylist() == expected.label.tolist() * 2
    assert table["probability"].to_pylist() == expected.probability.tolist() * 2
    assert {*table["version"].to_pylist()} == {1}
    assert table["digest"].to_pylist()[:30] == [hashlib.sha256(image.tobytes()).hexdigest() for image in IMAGES]
    assert np.array_equal(prediction_log.images(table, SHAPE), np.concatenate([IMAGES, IMAGES]))
    assert verify(store).findings == ()


def test_labels_that_come_later_give_the_accuracy(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own, _, _ = asked_twice(store)
    expected = load_champion("tiny", store).predict(IMAGES).label.tolist()
    # One of ten labels differs, and one is of an image that nobody has asked about.
    labels = {**dict(zip(own[:10], expected, strict=False)), "elsewhere": 0, own[0]: (expected[0] + 1) % 3}
    file = tmp_path / "labels.csv"
    file.write_text("id,label\n" + "".join(f"{key},bar {label}\n" for key, label in labels.items()))
    arguments = ["labels", "add", "tiny", str(file), "--store", str(store.root)]
    assert run_command([*arguments, "--json"]) == 0
    added = json.loads(capsys.readouterr().out)
    assert (added["labels"], added["new"], added["logged"], added["missing"]) == (11, True, 10, ["elsewhere"])
    assert (added["live"]["labelled"], added["live"]["correct"], added["live"]["accuracy"]) == (10, 9, 0.9)
    sentence = f"90.00% (59.58%–98.21%) of 10 labelled answers of v1; {added['live']['test_accuracy']:.2%} on test"
    assert run_command(arguments) == 0
    assert capsys.readouterr() == (
        f"11 labels, the same as the last ones; 10 of their ids are in the log\ntiny: {sentence}\n",
        "idxflow: not in the log, so far: 'elsewhere'\n",
    )
    run_command(["status", "tiny", "--store", str(store.root)])
    assert f"  live      {sentence}\n" in capsys.readouterr().out
    run_command(["status", "tiny", "--store", str(store.root), "--json"])
    assert json.loads(capsys.readouterr().out)["datasets"][0]["live"]["correct"] == 9
    with served(Site(store)) as client:
        assert client.get("/v1/tiny/live").json()["sentence"] == sentence
        metrics = client.get("/metrics").text
    assert 'idxflow_live_labelled{dataset="tiny",version="1"} 10.0' in metrics
    assert 'idxflow_live_accuracy{dataset="tiny",version="1"} 0.9' in metrics


def test_labels_come_in_any_of_three_kinds_by_name_or_by_number(store: Store, tmp_path: Path):
    file = tmp_path / "labels"
    for number, content in enumerate(
        (
            b"label,id\nbar 0,a\nbar 2,b\n",
            b'\xef\xbb\xbfid,label\r\n"a",0\r\n"b",2\r\n',
            b'{"id": "a", "label": "bar 0"}\n\n{"id": "b", "label": "bar 2"}\n',
            b'{"id": "a", "label": 0}\n{"id": "b", "label": 2}',
        )
    ):
        file.write_bytes(content)
        assert run_command(["labels", "add", "tiny", str(file), "--store", str(store.root)]) == 0
        assert later_labels.read(store, "tiny") == {"a": 0, "b": 2}
        assert len(store.objects.list("tiny/labels").objects) == 1, number
    pq.write_table(pa.table({"id": ["b", "c"], "label": [1, 1]}), file)
    assert run_command(["labels", "add", "tiny", str(file), "--store", str(store.root)]) == 0
    assert later_labels.read(store, "tiny") == {"a": 0, "b": 1, "c": 1}


@pytest.mark.remedies(
    "flows.labels:_bytes",
    "flows.labels:_bytes:2",
    "flows.labels:_rows",
    "flows.labels:_rows:2",
    "flows.labels:_numbers",
)
def test_a_file_that_cannot_be_used_is_a_sentence(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "labels"

    def refusal(content: bytes | None, code: int = 3) -> str:
        if content is not None:
            file.write_bytes(content)
        assert run_command(["labels", "add", "tiny", str(file), "--store", str(store.root)]) == code
        return capsys.readouterr().err

    assert "found No such file" in refusal(None, 2).replace("; No", "; found No")
    assert "it lacks 'label'; write it again" in refusal(b"id\n1\n")
    assert "with id and label in each row; " in refusal(b"{")
    assert "with id and label in each row; " in refusal(b"PAR1")
    assert "with id and label in each row; " in refusal(b"id,label\n\xff,0\n")
    assert "expected rows with id and label; found none; write them" in refusal(b"id,label\n")
    for label in (b"bar 7", b"7", b"-1", b"True", b""):
        sentence = refusal(b"id,label\na," + label + b"\n")
        assert "the name of a class (bar 0, bar 1, bar 2, …), or each a number of 0 to 2; found" in sentence
    for label in (b"true", b"[0]", b"{}", b"null"):
        assert "for the id 'a'; correct it" in refusal(b'{"id": "a", "label": ' + label + b"}")
    assert "with id and label in each row; " in refusal(b'{"id": "\\ud800", "label": 0}')
    monkeypatch.setattr("flows.labels.MAX_BYTES", 5)
    assert "add its rows in several files" in refusal(b"id,label\na,0\n")
    monkeypatch.undo()
    assert refusal(b"id,label\na,0\n", 0).startswith("idxflow: not in the log, so far: 'a'")


def test_files_of_a_process_become_one_and_those_of_a_day_too(empty: Store):
    clock = Clock()
    log = PredictionLog(empty, LogOptions(), clock)
    for number in range(MERGED_AT + 2):
        clock.now += timedelta(seconds=1)
        log.add("tiny", answers(clock, f"{number}"))
        log.flush()
    assert len(files(empty)) == 3
    expected = [f"{number}" for number in range(MERGED_AT + 2)]
    assert ids(empty) == expected
    # Another process, on the next day.
    clock.now += DAY
    other = PredictionLog(empty, LogOptions(), clock)
    other.add("tiny", answers(clock, "next"))
    other.flush()
    other.tidy()
    assert [name[:17] for name in files(empty)] == ["2026-11-30-merged", "2026-12-01-120106"]
    assert ids(empty) == [*expected, "next"]
    assert ids(empty, "2026-12-01") == ["next"]


def test_what_a_process_that_died_while_merging_left_counts_once(empty: Store, tmp_path: Path):
    clock = Clock()
    log = PredictionLog(empty, LogOptions(), clock)
    for name in "ab":
        log.add("tiny", answers(clock, name, f"{name}2"))
        log.flush()
    kept = {name: empty.objects.get(f"tiny/predictions/{name}") for name in files(empty)}
    clock.now += DAY
    log.tidy()
    (merged,) = files(empty)
    for name, data in kept.items():
        empty.objects.create(f"tiny/predictions/{name}", data)
    assert sorted(ids(empty)) == ["a", "a2", "b", "b2"]
    log.tidy()
    assert len(files(empty)) == 1
    assert merged not in files(empty)
    assert sorted(ids(empty)) == ["a", "a2", "b", "b2"]


def test_what_is_too_old_or_too_much_goes(empty: Store):
    clock = Clock()
    log = PredictionLog(empty, LogOptions(days=2), clock)
    for _ in range(5):
        log.add("tiny", answers(clock, f"{clock.now:%d}"))
        log.flush()
        clock.now += DAY
    log.tidy()
    # It is 5 December.
    assert ids(empty) == ["03", "04"]
    newest = empty.objects.list("tiny/predictions").objects[-1]
    PredictionLog(empty, LogOptions(bytes=newest.size), clock).tidy()
    assert ids(empty) == ["04"]


def test_a_log_that_cannot_be_written_fails_no_answer(store: Store, caplog: pytest.LogCaptureFixture):
    log = PredictionLog(store, LogOptions())
    # A file where the folder belongs, as somebody who is root meets it, too.
    obstacle = store.dataset("tiny") / "predictions"
    obstacle.write_text("")
    with served(Site(store, log=log)) as client:
        asked = client.post("/v1/tiny/predict", content=npy(), headers={"content-type": "application/x-npy"})
        assert asked.status_code == 200
        log.flush()
        assert (
            "the log of predictions of tiny could not be written"
            in client.get("/healthz").json()["problems"]["log of predictions"]
        )
        log.flush()
        assert caplog.text.count("could not be written") == 1
        assert "idxflow_log_problem 1.0" in client.get("/metrics").text
        obstacle.unlink()
        log.flush()
        assert client.get("/healthz").json()["status"] == "ok"
    assert len(ids(store)) == 30


def test_more_than_can_wait_is_dropped_and_counted(empty: Store, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    log = PredictionLog(empty, LogOptions(), clock)
    monkeypatch.setattr(prediction_log, "MOST_WAITING", 3 * IMAGES[0].nbytes)
    log.add("tiny", answers(clock, "a", "b"))
    log.add("tiny", answers(clock, "c", "d"))
    log.flush()
    log.add("tiny", answers(clock, "e"))
    log.stop()
    assert (ids(empty), log.rows, log.dropped) == (["a", "b", "e"], 3, 2)


def test_a_log_in_a_bucket_is_the_same(tmp_path: Path):
    store, clock = cloud_store(tmp_path / "cache"), Clock()
    store.prepare()
    retrain(store, 1)
    log = PredictionLog(store, LogOptions(), clock)
    for name in "ab":
        log.add("tiny", answers(clock, name))
        log.flush()
    clock.now += DAY
    log.tidy()
    assert len(files(store)) == 1
    later_labels.add(store, "tiny", {"a": 0}, clock.now)
    assert (ids(store), later_labels.read(store, "tiny")) == (["a", "b"], {"a": 0})


@pytest.mark.remedies("storage.prediction_log:_decoded", "storage.later_labels:read")
def test_a_damaged_file_is_named_and_the_log_goes_on_without_it(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    log = PredictionLog(store, LogOptions(), clock)
    for name in "ab":
        log.add("tiny", answers(clock, name))
        log.flush()
    later_labels.add(store, "tiny", {"a": 0}, clock.now)
    later_labels.add(store, "tiny", {"b": 0}, clock.now + DAY)
    for read_again, folder in (
        (lambda: ids(store), "predictions"),
        (lambda: later_labels.read(store, "tiny"), "labels"),
    ):
        first = sorted((store.dataset("tiny") / folder).iterdir())[0]
        first.write_bytes(first.read_bytes()[:-9])
        with pytest.raises(DamagedEntry, match=f"{first.name}: expected .*; remove it"):
            read_again()
        assert run_command(["status", "tiny", "--store", str(store.root)]) == 1
        assert "the accuracy on logged predictions is unknown" in capsys.readouterr().out
        with served(Site(store)) as client:
            refused = client.get("/v1/tiny/live")
            assert (refused.status_code, f"{first.name}: expected " in refused.json()["error"]) == (503, True)
        first.unlink()
        assert list(read_again()) == ["b"]
