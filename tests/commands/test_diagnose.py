"""`idxflow diagnose` as a user types it: what went wrong, and the learning curve, which never reads the test split."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import trainings
from flows.commands.cli import run_command
from storage.errors import ConfigError
from storage.records import RunRecord
from storage.store import Store
from storage.verify import verify
from tasks.diagnosing.learning_curve import SHARES, Point, config_for, finding, instead, summaries, verdict
from tests.conftest import write_tiny
from tests.support.pages import check_page
from tests.support.runs import carried_out

MANIFEST = "[floors]\naccuracy = 0.0\nclass_recall = 0.0\n"


@dataclasses.dataclass(frozen=True)
class World:
    store: Store
    runs: dict[str, RunRecord]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three runs: one that learns nothing, one without held-out rows, and the last one, which is good."""
    folder = tmp_path_factory.mktemp("world")
    store = Store(folder / "store")
    store.prepare()
    manifest = write_tiny(folder, train=240, manifest=MANIFEST).manifest
    runs = {
        "slow": carried_out(store, manifest, epochs=5, learning_rate=1e-6, activation="sigmoid", hidden=[8] * 6),
        "none held out": carried_out(store, manifest, validation_fraction=0, epochs=2),
        "good": carried_out(store, manifest, epochs=3),
    }
    yield World(store, runs)
    shutil.rmtree(folder)


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def idxflow(world: World, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IDXFLOW_STORE", str(world.store.root))

    def call(*words: str) -> tuple[int, str, str]:
        code = run_command(["diagnose", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_the_newest_training_is_judged_and_each_finding_has_a_command_to_try(world: World, idxflow: Call) -> None:
    code, out, _ = idxflow("tiny")
    assert code == 0
    assert out.startswith(f"tiny, run {world.runs['good'].id}: 3 epochs, ")
    assert out.endswith("no rule found a fault\n")
    slow = world.runs["slow"].id
    out = idxflow("tiny", slow)[1]
    assert "not learning: The network did not learn: after epoch 5 " in out
    values = json.loads(idxflow("tiny", slow, "--json")[1])
    finding = values["findings"][0]
    assert (values["run"], values["judged"], finding["name"]) == (slow, True, "not learning")
    assert f"        {finding['remedy']}\n" in out
    assert shlex.split(finding["remedy"])[:4] == ["idxflow", "run", "--dataset-file", "tiny.toml"]
    # A thousand times the rate is the default, which needs no setting.
    assert "learning_rate" not in finding["remedy"]


def test_a_run_says_the_most_important_finding_and_keeps_all(world: World) -> None:
    (record,) = [run for run in trainings_of(world) if run["run"] == world.runs["slow"].id]
    assert [finding["name"] for finding in record["findings"]][:1] == ["not learning"]
    remedy = shlex.split(record["findings"][0]["remedy"])
    # The manifest has its folder, unlike in the report, and the store is named.
    assert Path(remedy[3]).is_file()
    assert remedy[-2:] == ["--store", str(world.store.root)]


def trainings_of(world: World) -> list[dict[str, Any]]:
    from storage.registry import Registry

    return [*Registry(world.store, "tiny").ledger.newest("runs")]


def test_the_learning_curve_trains_on_shares_reuses_them_and_says_whether_more_would_help(
    world: World, idxflow: Call, tmp_path: Path
) -> None:
    # Nothing of the test split can be read, and it works all the same.
    hidden = list(world.store.entries("tiny", "decode").glob("*/test.parquet"))
    for path in hidden:
        path.rename(path.with_suffix(".away"))
    try:
        code, out, err = idxflow("tiny", "--learning-curve", "--seeds", "2")
        assert code == 0, err
    finally:
        for path in hidden:
            path.with_suffix(".away").rename(path)
    assert err.count("held-out loss") == len(SHARES) * 2
    assert "10 of 10: 100% of the rows, seed 2" in err
    # Seed 1 on all rows is the training of the run itself.
    assert err.count("reused") == 1
    assert [line.split("%")[0].strip() for line in out.splitlines() if "of the rows" in line] == [
        "10",
        "20",
        "40",
        "70",
        "100",
    ]
    page = tmp_path / "tiny-learning-curve.html"
    assert out.endswith(f"charts {page}\n")
    words = check_page(page.read_text(encoding="utf-8")).words()
    assert "Learning curve of tiny" in words
    again = json.loads(idxflow("tiny", "--learning-curve", "--seeds", "2", "--json")[1])
    curve = again["learning_curve"]
    assert [point["reused"] for point in curve["points"]] == [True] * 10
    assert [point["rows"] for point in curve["points"]][:5] == [24, 45, 87, 153, 216]
    assert (again["page"], curve["sentence"] in words, curve["sentence"] in out) == (None, True, True)
    assert not verify(world.store, "tiny").damage


def test_without_held_out_rows_a_curve_says_what_to_train_first(world: World, idxflow: Call) -> None:
    code, _, err = idxflow("tiny", world.runs["none held out"].id, "--learning-curve")
    assert code == 2
    assert "expected held-out rows, by which a learning curve is measured" in err
    assert "--set validation_fraction=0.1" not in err.partition("`")[0]
    command = err.partition("train with some first: `")[2].partition("`")[0]
    # The default, so it needs no setting of its own.
    assert shlex.split(command)[:4] == ["idxflow", "run", "--dataset-file", "tiny.toml"]


@pytest.mark.parametrize("option", [("--seeds", "2"), ("--out", "x.html"), ("--workers", "2")])
@pytest.mark.remedies("flows.commands.diagnose:_check_unused")
def test_options_of_the_curve_need_it(idxflow: Call, option: tuple[str, str]) -> None:
    code, _, err = idxflow("tiny", *option)
    assert code == 2
    assert f"expected --learning-curve with {option[0]}; found none" in err
    assert idxflow("tiny")[0] == 0


@pytest.mark.remedies("flows.trainings:diagnosed", "flows.trainings:learning_curve", "flows.trainings:learning_curve:2")
def test_a_run_whose_results_are_gone_is_named_with_what_to_do(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    from flows.dataset_in_store import DatasetInStore
    from storage.workers.here import Here

    root = tmp_path / "copied"
    shutil.copytree(world.store.root, root)
    data = DatasetInStore.open("tiny", str(root))
    held_none = trainings.diagnosed(data, world.runs["none held out"].id)
    with pytest.raises(ConfigError, match="expected held-out rows"):
        trainings.learning_curve(data, held_none, 1, Here(), print)
    good = trainings.diagnosed(data, None)
    lost = dataclasses.replace(good, record=dataclasses.replace(good.record, train=None))
    with pytest.raises(ConfigError, match="expected the training split of run"):
        trainings.learning_curve(data, lost, 1, Here(), print)
    assert trainings.learning_curve(data, good, 1, Here(), print).points
    shutil.rmtree(root / "tiny" / "5-models")
    with pytest.raises(ConfigError, match="expected a run of tiny with a trained model in the store"):
        trainings.diagnosed(data, None)
    # What it advises: a run.
    carried_out(data.store, world.store.root.with_name("tiny.toml"))
    assert trainings.diagnosed(DatasetInStore.open("tiny", str(root)), None).is_judged


@pytest.mark.remedies("flows.trainings:dataset_of")
def test_classes_that_no_ledger_has_are_asked_of_a_later_run(world: World) -> None:
    good = world.runs["good"]
    with pytest.raises(ConfigError, match="expected the classes of tiny in the ledger"):
        trainings.dataset_of(dataclasses.replace(good, facts=None))
    assert trainings.dataset_of(good).classes == ("bar 0", "bar 1", "bar 2")


EQUAL = (0.5, 0.5)


def points(*losses: float, seeds: int = 3, spread: float = 0.0, accuracy: float = 0.9) -> list[Point]:
    """Return points whose held-out loss has these values by share, with a spread over the seeds at the last one."""
    return [
        Point(
            share,
            round(1000 * share),
            seed,
            3,
            loss * (1 + spread * (seed - 2) * (share == 1)),
            accuracy,
            0.1,
            0.99,
            False,
        )
        for seed in range(1, seeds + 1)
        for share, loss in zip(SHARES, losses, strict=True)
    ]


def test_a_loss_that_falls_with_a_power_of_the_rows_says_what_twice_as_many_bring() -> None:
    falling = points(*(rows**-0.5 for rows in (100, 200, 400, 700, 1000)))
    found = verdict(falling, EQUAL)
    assert found.helps
    assert found.fall == pytest.approx(1 - 2**-0.5)
    assert found.sentence.startswith("More data would help: twice as many rows (2,000) are expected to lower")
    assert "by 29% (29% or more, by 3 seeds)." in found.sentence


def test_where_more_rows_are_not_to_be_had_images_are_varied_or_fewer_held_out() -> None:
    from storage.datasets.training import TrainingConfig

    falling = verdict(points(*(rows**-0.5 for rows in (100, 200, 400, 700, 1000))), EQUAL)
    found = finding(falling, TrainingConfig(), (28, 20))
    assert found
    assert found.settings == {"shift": 1.2, "rotate": 10.0, "zoom": 0.1}
    assert TrainingConfig(**found.settings)
    assert instead(found.settings) == "vary the images that there are"
    # One that does so already has fewer rows held out.
    found = finding(falling, TrainingConfig(rotate=5), (28, 20))
    assert found
    assert found.settings == {"validation_fraction": 0.05}
    assert instead(found.settings) == "hold out fewer of those that there are"
    assert finding(verdict(points(0.2, 0.1, 0.1, 0.1, 0.1), EQUAL), TrainingConfig(), (28, 20)) is None


def test_a_flat_curve_and_a_noisy_one_do_not_say_that_more_would_help() -> None:
    flat = verdict(points(0.2, 0.1, 0.1, 0.1, 0.1), EQUAL)
    assert (flat.helps, flat.fall) == (False, pytest.approx(0, abs=1e-9))
    assert flat.sentence.startswith("More data would hardly help: ")
    noisy = points(0.2, 0.12, 0.11, 0.1, 0.1, spread=0.9)
    assert not verdict(noisy, EQUAL).helps
    uncertain = verdict(points(0.5, 0.4, 0.3, 0.25, 0.2, spread=0.9), EQUAL)
    assert (uncertain.helps, uncertain.fall > 0.1) == (False, True)
    assert uncertain.sentence.startswith("Whether more data would help is uncertain, and more seeds would tell: twice")
    rising = verdict(points(0.1, 0.1, 0.11, 0.12, 0.13, seeds=1), EQUAL)
    assert (rising.helps, rising.low) == (False, None)
    assert "does not fall with the number of rows; it is 0.1300." in rising.sentence
    assert [one.rows for one in summaries(noisy)] == [100, 200, 400, 700, 1000]


def test_a_curve_of_trainings_that_did_not_learn_says_nothing() -> None:
    guessing = verdict(points(0.7, 0.6935, 0.6933, 0.6932, 0.6931, accuracy=0.5), EQUAL)
    assert (guessing.helps, guessing.fall, guessing.low) == (None, None, None)
    assert guessing.sentence == (
        "The curve does not say whether more data would help, because the training on all 1,000 rows did not learn, "
        "with 3 of 3 seeds: its held-out loss was never below 0.6931, and predicting only the class shares gives "
        "0.6931. Find a training that learns first."
    )
    one = points(0.5, 0.4, 0.3, 0.25, 0.2)
    one[4] = dataclasses.replace(one[4], held_out_loss=0.7, held_out_accuracy=0.4)
    assert "did not learn, with 1 of 3 seeds: " in verdict(one, EQUAL).sentence
    # Where the classes are not equal, naming the largest is no knowledge.
    assert verdict(points(*[0.4] * 5), (0.9, 0.1)).helps is None
    assert verdict(points(*[0.4] * 5), ()).helps is False


def test_each_share_is_trained_for_as_many_steps() -> None:
    from storage.datasets.training import TrainingConfig

    config = TrainingConfig(epochs=50)
    assert [config_for(config, share).epochs for share in SHARES] == [500, 250, 125, 72, 50]
    assert config_for(config, 1.0) is config
    assert config_for(TrainingConfig(epochs=5000), 0.1).epochs == 10_000
    waiting = config_for(TrainingConfig(epochs=50, warmup_epochs=2, patience=5), 0.1)
    assert (waiting.warmup_epochs, waiting.patience) == (20, 50)
    usual = config_for(TrainingConfig(epochs=50), 0.1)
    assert (usual.warmup_epochs, usual.patience) == (0, None)
    most = config_for(TrainingConfig(epochs=9000, warmup_epochs=8999), 0.1)
    assert TrainingConfig(**most.model_dump()).warmup_epochs == 9999


def test_a_larger_share_has_the_rows_of_a_smaller_one_and_no_held_out_row() -> None:
    from tasks.model.shares import drawn

    labels, held = np.tile(np.arange(3, dtype=np.uint8), 100), np.arange(300) % 7 == 0
    chosen = [drawn(labels, held, share, (1, 0)) for share in (0.001, 0.1, 0.4)]
    assert [int(each.sum()) for each in chosen] == [3, 27, 104]
    assert not any((each & held).any() for each in chosen)
    assert all((small <= large).all() for small, large in itertools.pairwise(chosen))
    assert (drawn(labels, held, 0.1, (2, 0)) != chosen[1]).any()
    assert (drawn(labels, held, 0.1, (1, 1)) != chosen[1]).any()
