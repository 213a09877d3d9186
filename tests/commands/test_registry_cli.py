"""The commands about champions as a user types them: real processes on a store that the library functions filled."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from flows.commands import registry as registry_commands
from storage.files import put_json_if_absent
from storage.ledger import Ledger
from storage.records import Evaluation, FolderEntry, TrainedModel
from storage.registry import Registry
from storage.store import Plan, Store
from tests.support.commands import Command, idxflow
from tests.support.servers import BIN, ROOT, clean_environment
from tests.support.stores import decided_in_format_3, pointed_in_format_3, promote

Cli = Callable[..., subprocess.CompletedProcess]

HISTORY = [
    ("promoted", 1, None, 1, "2026-05-01T09:00:00.000+00:00"),
    ("promoted", 2, 1, 2, "2026-05-10T23:30:00.000+00:00"),
    ("kept", 3, 2, 2, "2026-05-20T09:00:00.000+00:00"),
    ("promoted", 4, 2, 4, "2026-05-30T09:00:00.000+00:00"),
]
TRAIN_DATA = {1: "first rows", 2: "more rows", 3: "more rows", 4: "more rows"}


def put_version(store: Store, number: int) -> tuple[TrainedModel, Evaluation]:
    """Put a model and its evaluation into the store, as training and scoring would."""
    plan = Plan(
        "mine",
        "train",
        inputs={"train": TRAIN_DATA[number]},
        parameters={"seed": number},
        code={"tasks.train": "old code" if number == 1 else "new code"},
        libraries={"keras": "3.1" if number < 3 else "3.2"},
    )

    def train(folder: Path) -> TrainedModel:
        (folder / "weights.npz").write_bytes(b"weights %d" % number)
        return TrainedModel(FolderEntry(folder), f"weights-{number}", 10, 90, 10, 5, 5, 0.1, 0.95)

    def score(folder: Path) -> Evaluation:
        (folder / "predictions.npz").write_bytes(b"predictions %d" % number)
        return Evaluation(
            FolderEntry(folder), f"weights-{number}", "test rows", 100, 90, 0.9, 0.8, 1.0, 0.1, (), (), ()
        )

    model = store.get_or_make(plan, TrainedModel, train, str).record
    scoring = Plan("mine", "evaluate", inputs={"weights": model.weights_digest, "test": "test rows"})
    return model, store.get_or_make(scoring, Evaluation, score, str).record


@pytest.fixture
def filled(store: Store) -> Store:
    """A user's own data set: v1, v2 and v4 promoted by runs, v3 kept out."""
    registry = Registry(store, "mine")
    for outcome, number, before, after, moment in HISTORY:
        model, evaluation = put_version(store, number)
        registry.register(
            model=model.entry.key,
            evaluation=evaluation.entry.key,
            weights_digest=model.weights_digest,
            test_digest="test rows",
            test_accuracy=(90 + number) / 100,
            train_accuracy=0.95,
            classes=("x", "y"),
            image_shape=(2, 2),
            run=f"run-{number}",
        )
        rule = {"name": "better", "limit": "p at most 0.05", "observed": "p 0.4", "passed": outcome == "promoted"}
        decision = {
            "outcome": outcome,
            "sentence": f"{outcome} v{number}: net +{number}",
            "version": number,
            "champion": after,
            "previous": before,
            "rules": [rule],
            "test_digest": "test rows",
            "run": f"run-{number}",
            "time": moment,
        }
        stamp = moment[:19].replace("-", "").replace(":", "")
        put_json_if_absent(
            store.dataset("mine") / "ledger" / "decisions" / f"{stamp}.000000Z-run-{number}.json", decision
        )
        Ledger(store, "mine").append(
            "runs",
            f"run-{number}",
            {
                "asked_by": "schedule",
                "profile": "default",
                "config": {"seed": number, "lr": 1},
                "test_rows": 10_000,
            },
        )
        pointed_in_format_3(store, "mine", after)
    return store


@pytest.fixture
def cli(filled: Store, tmp_path: Path) -> Cli:
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(filled.root))
    return partial(idxflow, env=environment, cwd=tmp_path)


def options(store: Store, home: Path) -> dict:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {"cwd": home, "env": clean_environment(home, IDXFLOW_STORE=str(store.root)), **pipes}


def value(result: subprocess.CompletedProcess):
    """Return the one JSON value on standard output; anything else there is an error."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def champion(store: Store) -> int:
    return Registry(store, "mine").champion().number


def decisions(store: Store) -> list[dict]:
    return Ledger(store, "mine").read("decisions")


def assert_agreed(store: Store) -> None:
    """Each decision found the champion that the one before it made, and the pointer names the last one's."""
    ledger = decisions(store)
    assert [d["previous"] for d in ledger[1:]] == [d["champion"] for d in ledger[:-1]]
    assert champion(store) == ledger[-1]["champion"]


def test_history_has_a_line_per_decision_the_newest_first(cli: Cli):
    lines = cli("registry", "history", "mine").stdout.splitlines()[::-1]
    assert [line.split()[:4] for line in lines] == [
        ["2026-05-01", "09:00:00", "none→v1", "promoted"],
        ["2026-05-10", "23:30:00", "v1→v2", "promoted"],
        ["2026-05-20", "09:00:00", "v2", "stays"],
        ["2026-05-30", "09:00:00", "v2→v4", "promoted"],
    ]
    assert "run run-4 (schedule)" in lines[3]
    assert lines[3].endswith("net +4")
    history = value(cli("registry", "history", "mine", "--json"))
    assert [(t["outcome"], t["before"], t["after"], t["asked_by"]) for t in history[::-1]] == [
        (outcome, before, after, "schedule") for outcome, _, before, after, _ in HISTORY
    ]


def test_history_has_as_many_as_asked_for_and_says_how_to_see_the_rest(cli: Cli):
    few = cli("registry", "history", "mine", "--limit", "2")
    assert [line.split()[2] for line in few.stdout.splitlines()] == ["v2→v4", "v2"]
    assert few.stderr == "idxflow: 2 older decisions are not shown; --limit 4 shows all 4\n"
    assert [turn["version"] for turn in value(cli("registry", "history", "mine", "--limit", "3", "--json"))] == [
        4,
        3,
        2,
    ]
    assert cli("registry", "history", "mine", "--limit", "4").stderr == ""
    assert cli("registry", "history", "mine", "--limit", "0").returncode == 2


@pytest.mark.parametrize(
    ("moment", "version"),
    [
        ("2026-04-30", None),
        ("2026-05-01T08:59:59", None),
        ("2026-05-01T09:00:00", 1),
        ("2026-05-01", 1),
        ("2026-05-10T23:29:59Z", 1),
        ("2026-05-10", 2),
        ("2026-05-11T01:29+02:00", 1),
        ("2026-05-11T01:30+02:00", 2),
        ("2026-05-25", 2),
        ("9999-12-31", 4),
    ],
)
def test_who_was_champion_then(filled: Store, capsys: pytest.CaptureFixture, moment: str, version: int | None):
    assert registry_commands.at("mine", moment, store=str(filled.root), as_json=True) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["version"] == version
    assert (answer["decision"] or {}).get("reason") == (f"net +{version}" if version else None)


def test_at_says_why(cli: Cli):
    assert cli("registry", "at", "mine", "2026-05-15").stdout.strip() == (
        "2026-05-15 23:59:59 UTC: champion v2, since 2026-05-10 23:30:00 UTC by run run-2 (schedule): "
        "promoted v2: net +2"
    )


def test_the_date_of_today_means_until_now(cli: Cli):
    before = datetime.now(UTC)
    for moment in (before.date().isoformat(), f"{before.date()}T23:59:59.999999"):
        answer = value(cli("registry", "at", "mine", moment, "--json"))
        if datetime.now(UTC).date() == before.date():
            assert (answer["version"], before <= datetime.fromisoformat(answer["at"]) <= datetime.now(UTC)) == (4, True)
    later = cli("registry", "at", "mine", "9999-01-01")
    assert later.stdout.startswith("9999-01-01 23:59:59 UTC: champion v4, ")
    assert later.stderr == "idxflow: 9999-01-01 23:59:59 UTC is in the future: this is the champion as of now\n"


def test_diff_shows_only_what_differs(cli: Cli):
    diff = value(cli("registry", "diff", "mine", "1", "v2", "--json"))
    assert diff["differences"] == {
        "training": {"seed": {"a": 1, "b": 2}},
        "data": {"train": {"a": "first rows", "b": "more rows"}},
        "code": {"tasks.train": {"a": "old code", "b": "new code"}},
        "model": {"weights": {"a": "weights-1", "b": "weights-2"}},
        "accuracy": {"test": {"a": 0.91, "b": 0.92}},
    }
    lines = cli("registry", "diff", "mine", "1", "2").stdout
    assert "keras" not in lines
    assert "91.00% → 92.00%" in lines
    assert "3.1 → 3.2" in cli("registry", "diff", "mine", "2", "champion").stdout
    assert cli("registry", "diff", "mine", "2", "2").stdout == "v2 and v2 do not differ\n"


def test_show_tells_everything_of_a_version(cli: Cli, filled: Store):
    details = value(cli("registry", "show", "mine", "--json"))
    assert (details["version"], details["champion"], details["champion_since"]) == (
        4,
        True,
        HISTORY[3][4],
    )
    assert (details["test_accuracy"], details["weights_digest"], details["damage"]) == (
        0.94,
        "weights-4",
        None,
    )
    assert details["decisions"][0]["rules"][0]["limit"] == "p at most 0.05"
    text = cli("registry", "show", "mine", "3").stdout
    assert "v3 of mine, not the champion" in text
    assert "failed: better: p at most 0.05; found p 0.4" in text

    damage(filled, 4)
    damaged = cli("registry", "show", "mine", "--json")
    assert damaged.returncode == 1
    assert "weights.npz: expected" in json.loads(damaged.stdout)["damage"]


def test_show_says_what_the_accuracy_is_worth_after_four_decisions(cli: Cli):
    worth = value(cli("registry", "show", "mine", "--json"))["worth"]
    assert (worth["accuracy"], worth["decisions"]) == (0.94, 4)
    assert worth["adjusted_low"] < worth["low"] < 0.94 < worth["high"] < worth["adjusted_high"]
    lines = cli("registry", "show", "mine").stdout.splitlines()
    assert "interval     93.52% to 94.45% (95%)" in lines
    sentence = next(line for line in lines if line.startswith("worth"))
    assert "chosen in 4 decisions on the same test images" in sentence
    assert sentence.endswith("allowing for the choice, the 95% interval is 93.38% to 94.57%.")
    assert value(cli("registry", "show", "mine", "3", "--json"))["worth"] is None


def damage(store: Store, number: int) -> None:
    weights = put_version(store, number)[0].entry.path("weights.npz")
    weights.chmod(0o644)
    weights.write_bytes(b"other")


def test_a_forced_promotion_is_on_record_with_what_it_went_past(cli: Cli, filled: Store):
    refused = cli("promote", "mine", "3", "--reason", "new scanner")
    assert refused.returncode == 2
    assert "add it to override the gate: it failed better: expected p at most 0.05, found p 0.4" in refused.stderr
    assert champion(filled) == 4

    promotion = value(cli("promote", "mine", "v3", "--force", "--reason", "new\n scanner", "--json"))
    assert (promotion["outcome"], promotion["previous"], promotion["champion"]) == ("forced", 4, 3)
    last = decisions(filled)[-1]
    assert (last["reason"], last["asked_by"], last["rules"][0]["passed"]) == ("new scanner", "command line", False)
    assert_agreed(filled)
    line = cli("registry", "history", "mine").stdout.splitlines()[0].split()
    assert line[2:] == ["v4→v3", "forced", "command", "line", "new", "scanner"]


def test_rolling_back_twice_goes_back_two_champions(cli: Cli, filled: Store):
    assert cli("rollback", "mine", "--reason", "class 8 worse").stdout == "rolled back v4→v2: class 8 worse\n"
    assert cli("rollback", "mine", "--reason", "still").returncode == 0
    assert champion(filled) == 1
    third = cli("rollback", "mine", "--reason", "more")
    assert third.returncode == 2
    assert "found none before v1; nothing was changed" in third.stderr
    assert value(cli("rollback", "mine", "--to", "4", "--reason", "was fine", "--json"))["champion"] == 4
    assert [d["outcome"] for d in decisions(filled)[4:]] == ["rolled back"] * 3
    assert_agreed(filled)
    for digest in ("weights-1", "weights-2", "weights-3"):
        assert Registry(filled, "mine").manual_decision_about(digest)
    assert Registry(filled, "mine").manual_decision_about("weights-5") is None


WRONG = {
    "unknown data set": (["registry", "history", "nope"], "(mine); found 'nope'; give one of these"),
    "path for a data set": (["registry", "history", "../store/mine"], "(mine); found '../store/mine'"),
    "unknown version": (["registry", "show", "mine", "9"], "found '9'; give one of v1 to v4"),
    "no version": (["registry", "diff", "mine", "1", "best"], "found 'best'"),
    "huge version": (["registry", "show", "mine", "9" * 5000], "give one of v1 to v4"),
    "no date": (["registry", "at", "mine", "yesterday"], "expected a date or a time"),
    "date out of range": (["registry", "at", "mine", "0001-01-01T00:00+14:00"], "expected a date or a time"),
    "promote without reason": (["promote", "mine", "3", "--force"], "expected --reason"),
    "promote with an empty reason": (["promote", "mine", "3", "--force", "--reason", " \n"], "expected --reason"),
    "promote the champion": (["promote", "mine", "4", "--force", "--reason", "x"], "v4 is the champion already"),
    "promote what is not there": (["promote", "mine", "9", "--force", "--reason", "x"], "give one of v1 to v4"),
    "rollback without reason": (["rollback", "mine"], "expected --reason"),
    "rollback with controls": (["rollback", "mine", "--reason", "a\x1b[2J"], "printable"),
    "rollback to the champion": (["rollback", "mine", "--to", "4", "--reason", "x"], "v4 is the champion already"),
    "rollback to no champion": (["rollback", "mine", "--to", "3", "--reason", "x"], "never was"),
    "rollback to nowhere": (["rollback", "mine", "--to", "0", "--reason", "x"], "give one of v1 to v4"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_usage_ends_with_2_and_moves_nothing(cli: Cli, filled: Store, arguments: list[str], message: str):
    result = cli(*arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert (champion(filled), len(decisions(filled))) == (4, 4)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda store: damage(store, 2),
        lambda store: put_version(store, 2)[1].entry.path("").rename(store.root / "gone"),
        lambda store: (store.dataset("mine") / "registry" / "champion.json").write_text("{"),
        lambda store: decided_in_format_3(store, "mine", "run", {}).write_text("{"),
    ],
    ids=["weights changed", "evaluation gone", "pointer", "ledger"],
)
def test_damage_ends_with_1_and_moves_nothing(cli: Cli, filled: Store, spoil: Callable[[Store], object]):
    spoil(filled)
    folder = filled.dataset("mine")
    before = (folder / "registry" / "champion.json").read_text(), len(list((folder / "ledger/decisions").iterdir()))
    result = cli("rollback", "mine", "--reason", "x", "--json")
    assert result.returncode == 1, result.stderr
    assert json.loads(result.stdout)["error"]["exit_code"] == 1
    assert "expected" in result.stderr
    assert "Traceback" not in result.stderr
    after = (folder / "registry" / "champion.json").read_text(), len(list((folder / "ledger/decisions").iterdir()))
    assert after == before


KILLED = """
import os, sys
from flows.commands.cli import main
from storage.objects import sealed
WRITE = sealed.write
sealed.write = lambda objects, key, values: os._exit(9) if "champion.json" in key else WRITE(objects, key, values)
main(sys.argv[1:])
"""


def test_killed_before_the_hint_is_written_it_has_decided_and_the_same_again_goes_on_from_there(
    cli: Cli, filled: Store, tmp_path: Path
):
    command = ["rollback", "mine", "--reason", "class 8 worse"]
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(filled.root))
    assert subprocess.run([sys.executable, "-c", KILLED, *command], cwd=ROOT, env=environment).returncode == 9
    assert champion(filled) == 2
    assert len(decisions(filled)) == 5
    assert "did not take effect" not in cli("registry", "history", "mine").stdout
    assert value(cli("registry", "at", "mine", "9999-12-31", "--json"))["version"] == 2
    assert Registry(filled, "mine").manual_decision_about("weights-4")

    assert cli(*command).returncode == 0
    history = value(cli("registry", "history", "mine", "--json"))
    assert [(t["before"], t["after"], t["took_effect"]) for t in history[:2]] == [(2, 1, True), (4, 2, True)]


def test_processes_at_once_end_where_ledger_and_pointer_agree(filled: Store, tmp_path: Path):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(filled.root))
    commands = [["promote", "mine", str(n), "--force"] for n in (1, 2, 3)] + [["rollback", "mine"]] * 3
    with ExitStack() as stack:
        started = [Command(*words, "--reason", "at once", env=environment, cwd=tmp_path) for words in commands]
        for process in started:
            stack.enter_context(process)
        errors = [process.communicate(240)[1] for process in started]
        codes = [process.wait() for process in started]
    assert set(codes) <= {0, 2}, errors
    assert codes.count(0) == len(decisions(filled)) - 4 >= 3
    assert_agreed(filled)
    assert all(turn.took_effect for turn in Registry(filled, "mine").history())


def test_a_rollback_waits_for_a_run_that_is_deciding(filled: Store, tmp_path: Path):
    registry = Registry(filled, "mine")
    with registry.deciding():
        command = [str(BIN / "idxflow"), "rollback", "mine", "--reason", "x"]
        process = subprocess.Popen(command, **options(filled, tmp_path))
        assert "waiting for another process that is deciding about the champion" in process.stderr.readline()
        time.sleep(0.2)
        assert process.poll() is None
        # The run that holds the lock promotes v3; the rollback goes back from there.
        promote(registry, 3, "run-5")
    assert process.communicate(timeout=240)[0] == "rolled back v3→v4: x\n"
    assert_agreed(filled)


LIGHT = """
import sys, time
from flows.commands.cli import run_command
code = run_command(sys.argv[1:])
print(code, time.process_time(), *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["promote", "mine", "3", "--force", "--reason", "x"], ["rollback", "mine", "--reason", "x"]],
    ids=lambda a: a[0],
)
def test_moving_the_champion_takes_under_a_second_and_no_heavy_library(
    filled: Store, tmp_path: Path, arguments: list[str]
):
    result = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments], **{**options(filled, tmp_path), "cwd": ROOT}, timeout=240
    )
    code, seconds, *loaded = result.stderr.split()
    assert code == "0", result.stderr
    # Of processor time: what the clock says depends on what else runs.
    assert float(seconds) < 1
    assert not {"tensorflow", "keras", "prefect", "great_expectations", "numpy", "pyarrow"} & set(loaded)
