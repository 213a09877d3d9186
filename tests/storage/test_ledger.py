"""The ledger's order, which is not that of its times: clocks are wrong, and put right."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from flows import diagnosis
from flows.commands.cli import run_command
from storage.files import put_json_if_absent
from storage.ledger import KINDS, Ledger, Place, jumps, place, place_in, run_of
from storage.objects.folder import Folder
from storage.store import Store
from storage.verify import verify
from tests.support import commands
from tests.support.clocks import clock_ahead
from tests.support.servers import ROOT
from tests.support.stores import DATASET, retrain

YEAR = timedelta(days=365)
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
OLD = "20261124T080348.123456Z"


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store, DATASET)


def written_earlier(store: Store, kind: str, run: str, stamp: str = OLD) -> None:
    """Write a record as earlier versions did, which named it by its time."""
    time = datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).isoformat(timespec="milliseconds")
    put_json_if_absent(store.dataset(DATASET) / "ledger" / kind / f"{stamp}-{run}.json", {"run": run, "time": time})


def test_the_order_is_that_of_writing_whatever_the_clock_says(ledger: Ledger):
    for number, ahead in enumerate((0, 400, -4000, 2, 0)):
        with clock_ahead(timedelta(days=ahead)):
            ledger.append("runs", f"run-{number}", {})
    assert [record["run"] for record in ledger.read("runs")] == [f"run-{n}" for n in range(5)]
    times = [datetime.fromisoformat(record["time"]) for record in ledger.read("runs")]
    days = [round((time - datetime.now(UTC)) / timedelta(days=1)) for time in times]
    assert days == [0, 400, -4000, 2, 0], "a time is what the clock said"


def test_records_of_all_kinds_have_one_order(ledger: Ledger):
    for number, run in enumerate(("first", "second"), start=1):
        ledger.append("runs", run, {})
        assert ledger.decide(number, "by-hand", {})
        ledger.append("arrivals", run, {})
    places = sorted(place_in(ledger.record(kind, name), name) for kind in KINDS for name in ledger.names(kind))
    assert [name for *_, name in places] == [
        "00000001-first.json",
        "00000001.json",
        "00000002-first.json",
        "00000003-second.json",
        "00000002.json",
        "00000004-second.json",
    ]


def test_without_a_lock_two_records_may_have_one_number_and_their_names_give_the_order(
    store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    ledger.append("runs", "before", {})
    create = Folder.create

    def meanwhile(self: Folder, key: str, data: bytes) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "create", create)
            Ledger(store, DATASET).append("arrivals", "other", {})
            Ledger(store, DATASET).append("runs", "a", {})
        return create(self, key, data)

    monkeypatch.setattr(Store, "alone", lambda *_: nullcontext())
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "create", meanwhile)
        ledger.append("runs", "b", {})
    ledger.append("runs", "after", {})
    assert ledger.names("runs") == ["00000001-before.json", "00000002-b.json", "00000003-a.json", "00000004-after.json"]
    assert ledger.names("arrivals") == ["00000002-other.json"]
    assert verify(store).findings == ()


def test_records_named_by_their_time_come_before_those_with_numbers(store: Store, ledger: Ledger):
    written_earlier(store, "runs", "later", "29990101T000000.000000Z")
    written_earlier(store, "runs", "20261124-080348-aaaa")
    ledger.append("runs", "new", {})
    assert [run_of(name) for name in ledger.names("runs")] == ["20261124-080348-aaaa", "later", "new"]
    assert [record["run"] for record in islice(ledger.newest("runs"), 2)] == ["new", "later"]
    assert ledger.find("runs", "20261124-080348-aaaa")
    assert ledger.find("runs", "20261124") is None
    here = ledger.place_of("runs", "new")
    assert [record["run"] for record in ledger.newest("runs", here)] == ["later", "20261124-080348-aaaa"]


PROCESS = """
import pathlib, sys
from storage.ledger import Ledger
from storage.store import Store
for number in range(20):
    Ledger(Store(pathlib.Path(sys.argv[1])), "tiny").append(sys.argv[3], f"run-{sys.argv[2]}-{number}", {})
"""


def test_many_processes_and_threads_at_once_take_one_number_each(store: Store, ledger: Ledger):
    started = [
        subprocess.Popen([*commands.python(), "-c", PROCESS, str(store.root), str(n), kind], cwd=ROOT)
        for n, kind in enumerate(("runs", "arrivals", "runs"))
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: ledger.append("runs", f"thread-{number}", {}), range(20)))
    assert [process.wait(240) for process in started] == [0, 0, 0]
    numbers = [place(name)[1] for kind in KINDS for name in ledger.names(kind)]
    assert sorted(numbers) == list(range(1, 81))
    for n in (0, 2):
        mine = [run_of(name) for name in ledger.names("runs") if run_of(name).startswith(f"run-{n}-")]
        assert mine == [f"run-{n}-{number}" for number in range(20)]


def times(*hours: float) -> dict[Place, datetime]:
    return {place(f"{n:08d}-run.json"): NOW + timedelta(hours=hour) for n, hour in enumerate(hours, start=1)}


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        ((), []),
        ((-3, -2, -1, 0), []),
        ((-1, -1.01, 0, 0.01), []),
        ((-3, -1, -2), [(3, False)]),
        ((-2, 9, 8), [(2, True), (3, False)]),
        ((5, 6, -1), [(1, True), (3, False)]),
        ((-9, -1, -8, -7, -9), [(3, False), (5, False)]),
    ],
)
def test_a_clock_that_was_wrong_shows_in_the_times(hours: tuple[float, ...], expected: list[tuple[int, bool]]):
    assert [(place(jump.name)[1], jump.ahead) for jump in jumps(times(*hours), NOW)] == expected


def status(store: Store, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    code = run_command(["status", "--store", str(store.root)])
    return code, capsys.readouterr().out


def test_a_run_from_the_future_neither_proves_freshness_nor_stamps_those_after_it(
    store: Store, capsys: pytest.CaptureFixture
):
    retrain(store, 1)
    with clock_ahead(YEAR):
        retrain(store, 2)
    code, output = status(store, capsys)
    assert code == 1
    assert re.search(r"problem +the last successful run has a time in the future, 20\d\d-.* \(in 36[45] days\)", output)
    assert "stale" not in output, "the run before it is fresh"
    with clock_ahead(timedelta(days=9)):
        assert "stale: the last successful run was 9 days ago" in status(store, capsys)[1]

    retrain(store, 3)
    assert status(store, capsys)[0] == 0
    with clock_ahead(timedelta(days=9)):
        code, output = status(store, capsys)
    assert code == 1
    assert "stale: the last successful run was 9 days ago; expected one at least every 8 days" in output
    assert "in the future" not in output


def test_only_runs_from_the_future_are_a_problem(store: Store, capsys: pytest.CaptureFixture):
    with clock_ahead(YEAR):
        retrain(store, 1)
    code, output = status(store, capsys)
    assert (code, "in the future" in output) == (1, True)


def test_verify_remarks_on_the_clock_and_finds_no_damage(store: Store, capsys: pytest.CaptureFixture):
    retrain(store, 1)
    assert verify(store).findings == ()
    with clock_ahead(YEAR):
        retrain(store, 2)
    retrain(store, 3)
    assert run_command(["verify", "--store", str(store.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"remark: .*/00000002\.json: expected no time later than now, .*; found 2 up to ", lines[0])
    assert re.match(r"remark: .*/00000003\.json: expected a time after 20.*00000002-run-2\.json; found ", lines[1])
    assert lines[2].startswith("ok: ")
    assert lines[2].endswith("0 damaged, 0 left over, 2 remarks")
    with clock_ahead(2 * YEAR):
        (remark,) = verify(store).remarks
    assert remark.where.endswith("/00000003.json")


@pytest.mark.remedies("flows.diagnosis:_clock:2")
def test_the_doctor_warns_of_times_that_are_still_to_come(store: Store):
    retrain(store, 1)
    assert diagnosis._clock(store).verdict == "ok"
    with clock_ahead(YEAR):
        retrain(store, 2)
    finding = diagnosis._clock(store)
    assert (finding.verdict, "2 up to 20" in finding.found, "timedatectl" in finding.remedy) == ("warning", True, True)
    retrain(store, 3)
    with clock_ahead(2 * YEAR):
        finding = diagnosis._clock(store)
    assert (finding.verdict, finding.found) == (
        "ok",
        "set back before 00000003.json of tiny; the records are in order",
    )


def test_history_and_runs_are_in_the_order_they_happened(store: Store, capsys: pytest.CaptureFixture):
    for number, ahead in ((1, 0), (2, 365), (3, -365), (4, 0)):
        with clock_ahead(timedelta(days=ahead)):
            retrain(store, number)
    for command, last in ((["registry", "history"], "v3→v4"), (["runs", "list"], "run-4")):
        assert run_command([*command, DATASET, "--store", str(store.root)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert last in lines[0]
        assert len(lines) == 4


@pytest.mark.parametrize(
    ("ahead", "days_from_now", "version", "is_sure"),
    [
        ((-2, 365, 0), 1, 3, True),
        ((-2, 365, 0), -3, None, True),
        ((-2, 365, 0), -1, 1, True),
        ((-9, -2, -5), -1, 3, True),
        ((-9, -2, -5), -3, 3, False),
        ((-9, -365, 0), -20, 2, False),
    ],
)
def test_who_was_champion_is_said_with_a_doubt_where_the_clock_leaves_one(
    store: Store,
    capsys: pytest.CaptureFixture,
    ahead: tuple[float, ...],
    days_from_now: float,
    version: int | None,
    is_sure: bool,
):
    for number, days in enumerate(ahead, start=1):
        with clock_ahead(timedelta(days=days)):
            retrain(store, number)
    moment = (datetime.now(UTC) + timedelta(days=days_from_now)).isoformat()
    assert run_command(["registry", "at", DATASET, moment, "--store", str(store.root)]) == 0
    output = capsys.readouterr()
    assert (f"champion v{version}," if version else "no champion yet") in output.out
    assert ("the clock was set back" not in output.err) is is_sure
