"""`idxflow share tensorboard`, read by TensorBoard itself: its reader of event files, and its server."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from flows.commands.cli import run_command
from storage.records import RunRecord
from storage.store import Store
from tests.conftest import bars, write_tiny
from tests.support.runs import carried_out
from tests.support.servers import HTTP, clean_environment, free_port, running_fork

MANIFEST = "[floors]\naccuracy = 0.0\nclass_recall = 0.0\n"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, RunRecord]]:
    """A weak first champion, its successor, and data that was refused."""
    folder = tmp_path_factory.mktemp("runs")
    store = Store(folder / "store")
    manifest = write_tiny(folder, test=90, manifest=MANIFEST).manifest
    made = {"first": carried_out(store, manifest, learning_rate=1e-6), "second": carried_out(store, manifest)}
    wrong = bars(120, 90, 3, (9, 7))["train-labels"]
    wrong[[4, 11]] = 37
    write_tiny(folder, test=90, manifest=MANIFEST, arrays={"train-labels": wrong})
    return store, made | {"refused": carried_out(store, manifest)}


@pytest.fixture(scope="module")
def logdir(runs: tuple[Store, dict[str, RunRecord]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorboard") / "logs"
    assert run_command(["share", "tensorboard", "tiny", "--logdir", str(folder), "--store", str(runs[0].root)]) == 0
    return folder


@pytest.fixture(scope="module")
def server(logdir: Path) -> Iterator[str]:
    """A TensorBoard server; yields the address of its data."""
    port, home = free_port(), logdir.parent
    words = ["-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    words += ["--host", "127.0.0.1", "--load_fast", "false"]
    log = home / "tensorboard.log"
    with running_fork("python", words, clean_environment(home), home, log) as process:
        address = f"http://127.0.0.1:{port}/data"
        while not _has_loaded(address):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield address


def _has_loaded(address: str) -> bool:
    try:
        return len(HTTP.get(f"{address}/runs").json()) == 9
    except httpx.TransportError:
        return False


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def values(accumulated: Any, tag: str) -> list[float]:
    from tensorboard.util.tensor_util import make_ndarray

    return [float(make_ndarray(event.tensor_proto)) for event in accumulated.Tensors(tag)]


def test_tensorboard_reads_the_values_of_each_epoch_and_the_scores(
    runs: tuple[Store, dict[str, RunRecord]], logdir: Path
):
    from tensorboard.util.tensor_util import make_ndarray

    second = runs[1]["second"]
    assert second.model
    assert second.evaluation
    folder = logdir / "tiny" / second.id
    history = [json.loads(row) for row in second.model.entry.path("history.jsonl").read_text().splitlines()]
    for group, prefix in (("train", ""), ("validation", "validation_")):
        for name in ("loss", "accuracy"):
            expected = [epoch[f"{prefix}{name}"] for epoch in history]
            assert values(events(folder / group), name) == pytest.approx(expected)
    own, test = events(folder), events(folder / "test")
    assert [event.step for event in own.Tensors("learning_rate")] == [1, 2]
    for layer, norm in history[-1]["gradients"].items():
        assert values(own, f"gradient_norm/{layer}")[-1] == pytest.approx(norm)
    assert values(test, "accuracy") == pytest.approx([second.evaluation.accuracy])
    for score in second.evaluation.per_class:
        assert values(test, f"recall/{score.name}") == pytest.approx([score.recall])
    (text,) = make_ndarray(own.Tensors("decision")[0].tensor_proto).reshape(-1)
    assert "promoted v2" in text.decode()
    _, _, png = make_ndarray(events(logdir / "tiny" / runs[1]["first"].id).Tensors("mistakes")[0].tensor_proto)
    assert Image.open(io.BytesIO(png)).format == "PNG"
    refused = events(logdir / "tiny" / runs[1]["refused"].id)
    # Refused data has no scores, but the run is there with its reason.
    (text,) = make_ndarray(refused.Tensors("decision")[0].tensor_proto).reshape(-1)
    assert "label" in text.decode()


def test_writing_again_leaves_every_file_as_it_is_and_replaces_what_was_damaged(
    runs: tuple[Store, dict[str, RunRecord]], logdir: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["share", "tensorboard", "tiny", "--logdir", str(logdir), "--store", str(runs[0].root), "--json"]
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in logdir.rglob("*") if path.is_file()}
    ids = [run.id for run in runs[1].values()]
    assert run_command(words) == 0
    assert json.loads(capsys.readouterr().out) == {
        "dataset": "tiny",
        "folder": str(logdir / "tiny"),
        "written": [],
        "present": ids,
        "error": None,
    }
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in logdir.rglob("*") if p.is_file()} == files
    damaged = next(path for path in files if ids[1] in path.parts)
    damaged.write_bytes(b"cut off")
    assert run_command([*words[:3], "latest", ids[1], *words[3:]]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == [ids[1]]
    assert {path: path.read_bytes() for path in files} == {path: content for path, (_, content) in files.items()}


def test_its_server_shows_the_curves_and_compares_runs_by_their_parameters(
    runs: tuple[Store, dict[str, RunRecord]], server: str
):
    first, second = (runs[1][name] for name in ("first", "second"))
    asked = HTTP.get(
        f"{server}/plugin/scalars/scalars", params={"run": f"tiny/{second.id}/train", "tag": "accuracy"}
    ).json()
    assert [step for _, step, _ in asked] == [1, 2]
    experiment = HTTP.post(f"{server}/plugin/hparams/experiment", json={}).json()
    rates = next(info for info in experiment["hparamInfos"] if info["name"] == "learning_rate")
    assert rates["differs"]
    metric = {"tag": "accuracy", "group": "test"}
    assert metric in [info["name"] for info in experiment["metricInfos"]]
    query = {
        "startIndex": 0,
        "sliceSize": 10,
        "allowedStatuses": ["STATUS_SUCCESS"],
        "colParams": [{"metric": metric}],
    }
    groups = HTTP.post(f"{server}/plugin/hparams/session_groups", json=query).json()["sessionGroups"]
    compared = {
        group["name"]: (group["hparams"]["learning_rate"], value["value"])
        for group in groups
        for value in group["metricValues"]
        if value["name"] == metric
    }
    assert second.evaluation
    assert first.evaluation
    assert compared == {
        first.id: (pytest.approx(1e-6), pytest.approx(first.evaluation.accuracy)),
        second.id: (pytest.approx(0.1), pytest.approx(second.evaluation.accuracy)),
    }


@pytest.mark.remedies(
    "flows.sharing.tensorboard_files:write",
    "flows.sharing.tensorboard_files:_place",
    "flows.sharing.extras:check_installed",
)
def test_a_folder_that_cannot_be_written_and_a_missing_extra_are_told(
    runs: tuple[Store, dict[str, RunRecord]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "file").write_text("")
    words = ["share", "tensorboard", "tiny", "latest", "--store", str(runs[0].root), "--logdir"]
    assert run_command([*words, str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert f"expected a folder that can be written at {tmp_path}/file/tiny/" in said
    assert f"; found File exists at {tmp_path}/file (a file); correct that" in said
    assert run_command([*words, str(runs[0].root / "tiny")]) == 2
    assert f"expected --logdir outside the store {runs[0].root}; found " in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboard", None)
        assert run_command([*words, str(tmp_path / "logs")]) == 2
        assert "install the extra `tensorboard`" in capsys.readouterr().err
    assert run_command([*words, str(tmp_path / "logs")]) == 0
