"""Schedules of one's own data sets: what the commands write, and what `idxflow up` makes of it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from flows import own_schedules
from flows.commands.cli import run_command
from flows.own_schedules import Times, checked_times, file_of
from flows.retrain import retrain
from flows.service import own_plans
from flows.service.deployments import Own, read_plan
from storage import own_data
from storage.store import Store
from tests.conftest import write_tiny
from tests.support import sources

SUNDAYS = Times("0 3 * * 0", "Europe/Berlin")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, whose store and time zone count."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("IDXFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TZ", "Europe/Berlin")
    return folder


@pytest.fixture
def manifest(here: Path) -> Path:
    return write_tiny(here).manifest


@pytest.fixture
def opened(here: Path) -> Store:
    return Store(Path(os.environ["IDXFLOW_STORE"]))


def planned(store: Store) -> tuple[Own, list[str]]:
    """What `idxflow up` deploys, and what it says of the files that it cannot."""
    return own_plans.read(store.root, read_plan(), {})


def said(capsys: pytest.CaptureFixture[str], code: int, *words: str | Path) -> str:
    """Call the command, which ends with this code; what it printed."""
    assert run_command([*map(str, words)]) == code
    printed = capsys.readouterr()
    if code:
        assert printed.out == ""
        assert printed.err.count("\n") == 1
    return printed.out + printed.err


def test_a_data_set_is_added_with_its_schedule_wherever_it_lies(here: Path, opened: Store, tmp_path: Path, capsys):
    folder = here / "наборы 'данных'" / '"x"\t$HOME 字\u3000\U0001f600\x7f'
    folder.parent.mkdir()
    words = ("dataset", "add", "letters", sources.npz(tmp_path), "--as", folder, "--schedule", "@weekly", "--json")
    values = json.loads(said(capsys, 0, *words))["schedule"]
    assert values["file"] == str(folder / "letters.prefect.yaml")
    assert (values["deployment"], values["timezone"]) == ("retrain/letters", "Europe/Berlin")
    assert datetime.fromisoformat(values["next_run"]) > datetime.now(UTC)
    own, problems = planned(opened)
    assert problems == []
    (plan,) = own.plans
    assert plan.deployment["parameters"] == {"dataset": "letters", "dataset_file": str(folder / "letters.toml")}
    assert [(s["cron"], s["timezone"]) for s in plan.deployment["schedules"]] == [("@weekly", "Europe/Berlin")]
    # As `up` compares it with what is in prefect.yaml.
    assert {*plan.deployment} == {*next(d for d in read_plan()["deployments"] if d["name"] == "mnist")}


def test_the_next_run_is_printed_in_the_time_zone_that_counts(here: Path, manifest: Path, capsys):
    out = said(capsys, 0, "dataset", "schedule", "tiny.toml", "30 2 * * *", "--timezone", "Asia/Kolkata")
    assert re.match(r"scheduled retrain/tiny: next [A-Z][a-z]+day \d{4}-\d\d-\d\d 02:30, Asia/Kolkata\n", out)
    assert f"made {here / 'tiny.prefect.yaml'}, which `idxflow up` deploys" in out
    spring = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert SUNDAYS.next(spring).astimezone(UTC) == datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert SUNDAYS.next(datetime(2026, 1, 1, tzinfo=UTC)).astimezone(UTC) == datetime(2026, 1, 4, 2, tzinfo=UTC)


@pytest.mark.remedies(
    "flows.own_schedules:checked_times:2", "flows.own_schedules:_check_free", "flows.commands.dataset:_times_of_new"
)
def test_what_is_wrong_with_a_schedule_is_said_before_anything_is_made(here: Path, tmp_path: Path, capsys):
    source = sources.npz(tmp_path)
    for name, cron, words in (
        ("letters", "0 3 31 2 *", "found '0 3 31 2 *', which never comes due; correct it"),
        ("letters", "0 25 * * *", "found '0 25 * * *', which is malformed; correct it"),
        ("letters", "Sundays", "found 'Sundays', which is malformed; correct it"),
        ("inbox", "0 3 * * 0", "(digits, inbox, mnist, study, drift, garbage); found 'inbox'; choose another name"),
    ):
        assert words in said(capsys, 2, "dataset", "add", name, source, "--schedule", cron)
        assert list(here.iterdir()) == []
    alone = said(capsys, 2, "dataset", "add", "letters", source, "--timezone", "UTC")
    assert alone.endswith("found only --timezone UTC; add one, or leave the other out\n")
    assert list(here.iterdir()) == []
    assert not (tmp_path / "store" / own_data.LIST).exists()
    assert "scheduled retrain/letters" in said(
        capsys, 0, "dataset", "add", "letters", source, "--schedule", "0 3 * * 0"
    )


@pytest.mark.remedies("flows.own_schedules:checked_times", "flows.own_schedules:_local_zone")
def test_a_time_zone_has_a_name(manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    schedule = ("dataset", "schedule", "tiny.toml", "0 3 * * 0")
    refused = said(capsys, 2, *schedule, "--timezone", "Europe/Berln")
    assert "found 'Europe/Berln' (did you mean Europe/Berlin?); give one with --timezone" in refused
    # As POSIX has it, which names no place.
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    assert "; give one with --timezone, such as Europe/Berlin" in said(capsys, 2, *schedule)
    assert not file_of(manifest).exists()
    assert ", Europe/Berlin\n" in said(capsys, 0, *schedule, "--timezone", "Europe/Berlin")
    monkeypatch.setenv("TZ", ":/usr/share/zoneinfo/Asia/Kolkata")
    assert checked_times("0 3 * * 0").timezone == "Asia/Kolkata"
    monkeypatch.delenv("TZ")
    monkeypatch.setattr(own_schedules, "_LOCALTIME", manifest.with_name("none"))
    assert checked_times("0 3 * * 0").timezone == "UTC"


@pytest.mark.remedies("flows.own_schedules:_is_to_write")
def test_typed_again_it_changes_the_times_and_nothing_that_people_changed(manifest: Path, opened: Store, capsys):
    file = own_schedules.schedule(opened, manifest, SUNDAYS).file
    before = file.stat()
    own_schedules.schedule(opened, manifest, SUNDAYS)
    assert file.stat() == before
    said(capsys, 0, "dataset", "schedule", manifest, "30 2 * * *")
    assert yaml.safe_load(file.read_text())["deployments"][0]["schedules"][0]["cron"] == "30 2 * * *"
    edited = file.read_text().replace("    schedules:", "      profile: fast\n    schedules:")
    file.write_text(edited)
    refused = said(capsys, 2, "dataset", "schedule", manifest, "0 4 * * *")
    assert refused.endswith("found other changes in it; change its schedule there, or remove it first\n")
    # Both are done. What is there already is left as it is, and listed again.
    file.write_text(edited.replace("30 2", "0 4"))
    (opened.root / own_data.LIST).unlink()
    said(capsys, 0, "dataset", "schedule", manifest, "0 4 * * *")
    assert "profile: fast" in file.read_text()
    assert planned(opened)[0].plans[0].deployment["parameters"]["profile"] == "fast"
    file.write_text("x: [")
    assert "found other changes" in said(capsys, 2, "dataset", "schedule", manifest, "0 4 * * *")
    file.unlink()
    said(capsys, 0, "dataset", "schedule", manifest, "0 5 * * *")


def test_a_folder_that_was_moved_is_scheduled_where_it_is_now(here: Path, opened: Store, capsys):
    manifest = write_tiny(here / "old").manifest
    own_schedules.schedule(opened, manifest, SUNDAYS)
    (here / "old").rename(here / "new")
    assert planned(opened) == (Own(str(opened.root)), [])
    said(capsys, 0, "dataset", "schedule", "new/tiny.toml", "0 3 * * 0")
    assert own_data.manifests(opened.root) == {"tiny": here / "new" / "tiny.toml"}
    (plan,) = planned(opened)[0].plans
    assert plan.deployment["parameters"]["dataset_file"] == str(here / "new" / "tiny.toml")
    # By another way to the same place, it is the same.
    (here / "link").symlink_to("new")
    said(capsys, 0, "dataset", "schedule", "link/tiny.toml", "0 3 * * 0")
    assert own_data.manifests(opened.root) == {"tiny": here / "link" / "tiny.toml"}
    shutil.rmtree(here / "new")
    assert planned(opened) == (Own(str(opened.root)), [])


@pytest.mark.remedies("flows.own_schedules:_check_free:2", "flows.own_schedules:unschedule")
def test_two_of_one_name_are_not_both_scheduled(here: Path, opened: Store, capsys):
    one, other = (write_tiny(here / folder).manifest for folder in ("one", "other's"))
    said(capsys, 0, "dataset", "schedule", "other's/tiny.toml", "0 3 * * 0")
    refused = said(capsys, 2, "dataset", "schedule", "one/tiny.toml", "0 3 * * 0")
    assert not file_of(one).exists()
    assert f"found {file_of(other)}; choose another name, or remove that one: `" in refused
    missing = said(capsys, 2, "dataset", "unschedule", "one/tiny.toml")
    assert f"({other}); found {one}; give its manifest" in missing
    # As both advise. The manifest may be gone already.
    other.unlink()
    assert said(capsys, 0, "dataset", "unschedule", "other's/tiny.toml").startswith("removed ")
    assert own_data.manifests(opened.root) == {}
    said(capsys, 0, "dataset", "schedule", "one/tiny.toml", "0 3 * * 0")
    assert [plan.name for plan in planned(opened)[0].plans] == ["tiny"]


@pytest.mark.remedies("flows.own_schedules:_as_yaml")
@pytest.mark.parametrize("name", ["{{ x }}", os.fsdecode(b"\xff")])
def test_a_path_that_the_file_cannot_have_is_refused(name: str, here: Path, tmp_path: Path, capsys):
    words = ("dataset", "add", "letters", sources.npz(tmp_path), "--schedule", "0 3 * * 0", "--as")
    assert said(capsys, 2, *words, name).endswith("; rename the folder or the file\n")
    assert list(here.iterdir()) == []
    said(capsys, 0, *words, "letters")


def test_several_at_once_are_all_listed(here: Path, opened: Store):
    manifests = []
    for number in range(8):
        manifests.append(write_tiny(here, name=f"tiny{number}").manifest)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda manifest: own_schedules.schedule(opened, manifest, SUNDAYS), manifests))
    assert [*own_data.manifests(opened.root).values()] == manifests
    assert len(planned(opened)[0].plans) == 8
    assert [path.name for path in opened.root.iterdir()] == [own_data.LIST]


def test_a_store_that_cannot_be_written_is_said_before_anything_is_made(here: Path, tmp_path: Path, capsys):
    words = ("dataset", "add", "letters", sources.npz(tmp_path), "--schedule", "0 3 * * 0")
    refused = said(capsys, 1, *words, "--store", "/proc/store")
    assert refused.startswith("idxflow: cannot use /proc/store")
    assert list(here.iterdir()) == []
    said(capsys, 0, *words)


@pytest.mark.remedies("storage.own_data:manifests")
def test_a_damaged_list_is_named_and_drops_nothing(manifest: Path, opened: Store, capsys):
    own_schedules.schedule(opened, manifest, SUNDAYS)
    path = opened.root / own_data.LIST
    path.write_text(path.read_text().replace("tiny", "tint"))
    own, problems = planned(opened)
    assert (own.plans, own.is_complete) == ((), False)
    assert len(problems) == 1
    refused = said(capsys, 1, "dataset", "schedule", manifest, "0 3 * * 0")
    assert problems[0] in refused
    assert refused.endswith("remove this file, then repeat `idxflow dataset schedule MANIFEST CRON` for each of them\n")
    path.unlink()
    said(capsys, 0, "dataset", "schedule", manifest, "0 3 * * 0", "--timezone", "Europe/Berlin")
    assert len(planned(opened)[0].plans) == 1


def test_the_file_may_give_each_parameter_of_a_run(manifest: Path, opened: Store):
    file = own_schedules.schedule(opened, manifest, SUNDAYS).file
    more = {"audit": True, "force": True, "profile": "fast", "quarantine": ["blank", "leaked"], "quarantine_limit": 0.1}
    more |= {"catch_up": "all", "source": str(manifest.parent), "store": str(opened.root), "training": {"epochs": 5}}
    more |= {"as_of": "2026-11-30", "workers": "4"}
    described = inspect.signature(retrain.fn).parameters
    assert {*more, "dataset", "dataset_file"} == {*described}
    plan = yaml.safe_load(file.read_text())
    plan["deployments"][0]["parameters"] |= more
    file.write_text(yaml.safe_dump(plan))
    own, problems = planned(opened)
    assert problems == []
    assert more.items() <= own.plans[0].deployment["parameters"].items()


BROKEN = {
    "": "one deployment; found another one",
    "x: [": "found while parsing a flow node",
    "\x00": "found unacceptable character",
    "deployments: []": "found 0 of them",
    " " * 70_000: "found more than 65,536 bytes",
    # Where the depth that Python allows is larger, the end of the file is what is wrong.
    f"a: {'[' * 5_000}": "one deployment; found ",
}
CHANGED = {
    ("0 3 * * 0", "0 3 31 2 *"): "never comes due",
    ("0 3 * * 0", "never"): "expected schedules that come due",
    (
        "      - slug",
        "      - {slug: own, interval: 60}\n      - slug",
    ): "found two schedules that are the same or have",
    ("    schedules", "      profile: quick\n    schedules"): "expected parameters.profile to be one of default,",
    ("    schedules", "      epochs: 5\n    schedules"): "found parameters.epochs; remove it",
    ("    schedules", "      training: {epochs: 0}\n    schedules"): "expected epochs to be an integer from 1",
    ("    schedules", "      quarantine: [leek]\n    schedules"): "expected parameters.quarantine to be a list of ",
    ("    schedules", "      quarantine_limit: .nan\n    schedules"): "expected parameters.quarantine_limit to be",
    ("    schedules", "      workers: 4 cores\n    schedules"): "expected parameters.workers to be",
    ("    schedules", "      source: https://me:word@host/\n    schedules"): "expected an address without user",
    ("    schedules", "    pull: []\n    schedules"): "found pull; remove it",
    ("name: idxflow\n    c", "job_variables: {command: ls}\n    c"): "found work_pool.job_variables; remove it",
    ("tags: [", "tags: 5 # ["): "expected tags to be a list of strings; found 5",
    ("limit: 1", "limit: 0"): "expected concurrency_limit.limit to be an integer of at least 1; found 0",
    ("Retrain on", "{{ $PREFECT_API_AUTH_STRING }}"): "found an alias, or '{{'",
    ("tags: [", "work_pool: &a {}\n    tags: [*a, "): "found an alias, or '{{'",
    ("flows.retrain.retrain", "os.system"): "expected entrypoint to be flows.retrain.retrain; found 'os.system'",
    ("tiny.toml", "other.toml"): "expected dataset_file to be ",
}


@pytest.mark.remedies(
    "flows.service.own_plans:_deployment",
    "flows.service.own_plans:_deployment:2",
    "flows.service.own_plans:_check_run",
    "flows.service.own_plans:_check_run:2",
)
def test_a_file_that_cannot_be_used_is_a_sentence_and_the_others_are_deployed(here: Path, opened: Store):
    manifest, good = write_tiny(here / "bad").manifest, write_tiny(here, name="good").manifest
    own_schedules.schedule(opened, good, SUNDAYS)
    file = own_schedules.schedule(opened, manifest, SUNDAYS).file
    text = file.read_text()

    def found(words: str) -> None:
        own, problems = planned(opened)
        assert [plan.name for plan in own.plans] == ["good"]
        # What the server has of it stays.
        assert own.held == {"tiny"}
        (problem,) = problems
        assert problem.startswith(f"{here / 'bad'}{os.sep}")
        assert words in problem
        assert "word@" not in problem

    for broken, words in BROKEN.items():
        file.write_text(broken)
        found(words)
    for change, words in CHANGED.items():
        assert change[0] in text
        file.write_text(text.replace(*change, 1))
        found(words)
    # As they advise.
    file.unlink()
    own_schedules.schedule(opened, manifest, SUNDAYS)
    assert len(planned(opened)[0].plans) == 2
    described = manifest.read_text()
    manifest.write_text(described.replace('"tiny"', '"renamed"', 1))
    found("found that of renamed; give it the name again")
    manifest.unlink()
    found("expected a manifest in TOML; found nothing")
    manifest.write_text(described)
    assert len(planned(opened)[0].plans) == 2


def test_what_prefect_or_another_deployment_stands_against_is_a_sentence(manifest: Path, opened: Store):
    own_schedules.schedule(opened, manifest, SUNDAYS)
    (plan,) = planned(opened)[0].plans
    assert own_plans.read(opened.root, read_plan(), {plan.digest: "refused"})[1] == ["refused"]
    own, problems = own_plans.read(opened.root, {"deployments": [{"name": "tiny"}]}, {})
    assert own.plans == ()
    assert "expected a deployment with a name that prefect.yaml does not have; found tiny; give the data" in problems[0]


def test_a_problem_is_printed_once_and_again_when_it_comes_back(manifest: Path, opened: Store):
    file, lines = own_schedules.schedule(opened, manifest, SUNDAYS).file, list[str]()
    files, text = own_plans.OwnFiles(opened.root, lines.append), file.read_text()
    for content, printed in (("x", 1), ("x", 1), (text, 1), ("x", 2)):
        file.write_text(content)
        files.read(read_plan())
        assert len(lines) == printed
    assert lines[0].startswith(f"warning: {file}: ")
