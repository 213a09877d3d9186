"""The outcome of a run, as `--json` prints it and as the ledger keeps it, now and before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from storage.outcomes import Outcome, steps_of
from storage.records import Failure, Step

STEPS = (
    Step("fetch", "f1", "10 bytes", 0.1234, True, "nothing changed", subject="train-images"),
    Step("evaluate", "e1", "9 of 10 right", 1.5, False, "first run"),
    Step("evaluate", "e2", "8 of 10 right", 0.25, True, "nothing changed", of="champion"),
)
FAILURE = Failure("ModelRefused", "tiny: model refused", 5)
ENDED = Outcome("refused", "tiny: model refused", "tiny", "/store", run="r", steps=STEPS, error=FAILURE)
KEYS = (
    *("state", "sentence", "dataset", "run", "version", "champion", "train_accuracy", "test_accuracy", "epochs"),
    *("findings", "steps", "seconds", "store", "report", "error", "as_of", "study"),
)


def written(values: dict[str, Any]) -> dict[str, Any]:
    again: dict[str, Any] = json.loads(json.dumps(values, sort_keys=True))
    return again


def test_json_has_each_step_under_its_name():
    values = written(ENDED.to_json())
    assert tuple(ENDED.to_json()) == KEYS
    assert values["steps"].keys() == {"fetch train-images", "evaluate", "evaluate champion"}
    reused = {"key": "e2", "summary": "8 of 10 right", "seconds": 0.25, "reused": True, "reason": "nothing changed"}
    assert values["steps"]["evaluate champion"] == reused
    assert (values["error"]["kind"], values["version"], ENDED.exit_code) == ("ModelRefused", None, 5)


def test_the_ledger_gives_the_steps_back_in_their_order():
    first, *others = steps_of(written(ENDED.for_ledger()))
    assert (first.name, first.seconds) == ("fetch train-images", 0.123)
    assert tuple(others) == STEPS[1:]


def test_the_ledger_keeps_two_steps_of_one_name():
    twice = Outcome("valid", "", "tiny", "/store", steps=(STEPS[1], STEPS[1]))
    assert len(steps_of(written(twice.for_ledger()))) == 2


def test_a_record_of_an_earlier_version_has_its_steps_by_name_in_no_order():
    names = [
        *(f"fetch {role}" for role in ("train-images", "train-labels", "test-images", "test-labels")),
        *("decode train", "decode test", "validate", "normalize", "train", "evaluate", "confirm", "evaluate champion"),
        "unheard of",
    ]
    values = {"key": "k", "summary": "1 row", "seconds": 0.1, "reused": True, "reason": "nothing changed"}
    steps = steps_of({"steps": dict.fromkeys(sorted(names), values)})
    assert [step.name for step in steps] == names
    assert steps[5] == Step("decode", "k", "1 row", 0.1, True, "nothing changed", subject="test")
    assert [(step.step, step.of) for step in steps if step.of] == [("evaluate", "champion")]


@pytest.mark.parametrize("steps", [None, {}, []])
def test_a_run_without_steps_has_none(steps: object):
    assert steps_of({"steps": steps}) == ()
    assert steps_of({}) == ()
