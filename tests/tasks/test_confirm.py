"""A fresh process must predict what the trainer's process did, or the model is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from storage.errors import ModelRefused
from storage.formats import arrays
from storage.records import FolderEntry
from storage.runtime import code_digests
from storage.store import Store
from tasks.confirm import PARTS, ROWS, confirm, sample_rows
from tasks.evaluate import evaluate
from tests.conftest import TinyFactory
from tests.support import models


@pytest.fixture(autouse=True)
def in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for users: elsewhere in the tests, a fork stands for that process (`tests.support.forked_command`)."""
    monkeypatch.setattr("tasks.confirm.subprocess", subprocess)


@pytest.fixture
def inputs(store: Store, tiny: TinyFactory):
    dataset = tiny()
    model = models.trained(store, dataset).record
    test = models.split(store, dataset, "test")
    return dataset, model, test, evaluate.fn(store, dataset, model, test).record


def test_a_good_model_is_confirmed_once(store: Store, inputs: tuple):
    first, second = confirm.fn(store, *inputs), confirm.fn(store, *inputs)
    assert first.record.rows == 30
    assert first.record.difference == 0
    assert (first.step.reused, second.step.reused) == (False, True)
    assert "a fresh process predicts the same for 30 rows" in first.step.summary


def test_other_predictions_than_the_trainer_s_are_refused(store: Store, inputs: tuple):
    dataset, model, test, evaluation = inputs
    stored = arrays.read(
        evaluation.file, {"predicted": (np.uint8, (test.rows,)), "probability": (np.float32, (test.rows, 3))}
    )
    elsewhere = dataclasses.replace(evaluation, entry=FolderEntry(store.root / "other"))
    elsewhere.entry.folder.mkdir()
    arrays.write(elsewhere.file, stored | {"probability": stored["probability"][:, ::-1].copy()})
    with pytest.raises(ModelRefused, match="its probabilities differ by up to"):
        confirm.fn(store, dataset, model, test, elsewhere)


@pytest.mark.remedies("tasks.confirm:_refused")
def test_a_model_that_cannot_be_loaded_is_refused_in_one_sentence(store: Store, inputs: tuple):
    dataset, model, test, evaluation = inputs
    model.weights.chmod(0o644)
    model.weights.write_bytes(model.weights.read_bytes()[:-5])
    with pytest.raises(ModelRefused, match=r"weights\.npz.*the champion stays") as caught:
        confirm.fn(store, dataset, model, test, evaluation)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("train again")
    again = models.trained(store, dataset).record
    assert confirm.fn(store, dataset, again, test, evaluation).record.difference == 0


@pytest.mark.parametrize("rows", [1, 2, ROWS, ROWS + 1, 10_000])
def test_sample_rows_cover_the_split(rows: int):
    numbers = sample_rows([rows])
    assert numbers == np.unique(np.linspace(0, rows - 1, min(ROWS, rows)).astype(int)).tolist()
    assert len(numbers) == min(rows, ROWS)
    assert (numbers[0], numbers[-1]) == (0, rows - 1)


def test_sample_rows_are_in_few_of_many_parts():
    numbers = sample_rows([100] * 50 + [3])
    assert len(numbers) == 7 * 8 + 3
    assert len({number // 100 for number in numbers}) == PARTS
    assert (numbers[0], numbers[-1]) == (0, 5002)
    assert sample_rows([1, 2, 1]) == [0, 1, 2, 3]


def test_the_fresh_process_loads_neither_prefect_nor_tensorflow():
    heavy = {"prefect", "tensorflow", "keras", "pydantic"}
    code = f"import sys, tasks.model.confirm_worker; print(*{heavy} & sys.modules.keys())"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=code_digests.ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == ""
