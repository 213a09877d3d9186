"""What `idxflow up` puts on the server: the schedules of prefect.yaml, beside those that people have made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule

from flows.service import deployments
from flows.service.deployments import PLAN, VARIABLE, Own, OwnPlan, Promise, read_plan
from flows.service.memory import Memory, Remembered
from storage.errors import ConfigError, PrefectFailed
from tests.support.operated import fork_deploys

YEARLY = "0 0 1 1 *"
POOL = "of-schedules"


@pytest.fixture
def client(server: dict[str, str], results: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A client of the shared server, which is left as it was."""
    fork_deploys(monkeypatch)
    with get_client(sync_client=True) as client:
        yield client
        for deployment in client.read_deployments():
            if deployment.work_pool_name == POOL:
                client.delete_deployment(deployment.id)
        client.delete_variable_by_name(VARIABLE)
        client.delete_work_pool(POOL)


def planned(tmp_path: Path, **schedules: dict[str, str] | None) -> dict[str, Any]:
    """A plan whose deployments have schedules by slug; one without a slug is named by `-`."""
    file = tmp_path / PLAN.name
    file.write_text(
        yaml.safe_dump(
            {
                "name": "idxflow",
                "deployments": [
                    {
                        "name": name,
                        "entrypoint": "flows.retrain.retrain",
                        **({"schedules": [_scheduled(*item) for item in crons.items()]} if crons is not None else {}),
                    }
                    for name, crons in schedules.items()
                ],
            }
        )
    )
    return read_plan(file)


def _scheduled(slug: str, cron: str) -> dict[str, str]:
    return {"cron": cron, **({} if slug == "-" else {"slug": slug})}


def schedules_by_deployment(client: SyncPrefectClient) -> dict[str, set[str]]:
    """The schedules of the deployments of the pool, by name."""
    return {
        deployment.name: {schedule.schedule.cron for schedule in deployment.schedules}
        for deployment in client.read_deployments()
        if deployment.work_pool_name == POOL
    }


def make(client: SyncPrefectClient, name: str, cron: str, slug: str | None = None) -> None:
    """Make a schedule as a person does: in the UI, which gives it no slug, or by the API."""
    deployment = next(d for d in client.read_deployments() if d.name == name)
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron=cron), slug=slug)
    client.create_deployment_schedules(deployment.id, [schedule])


@pytest.mark.flow
@pytest.mark.remedies("flows.service.deployments:_deploy")
def test_what_is_in_the_file_no_more_is_removed_and_what_people_made_stays(
    client: SyncPrefectClient, server: dict[str, str], tmp_path: Path
):
    first = planned(
        tmp_path,
        taken_out={"weekly": "0 0 2 1 *", "-": "0 0 3 1 *"},
        all_taken_out={"weekly": "0 0 4 1 *"},
        renamed={"weekly": "0 0 5 1 *"},
        unchanged={"weekly": "0 0 6 1 *"},
        removed={"weekly": "0 0 7 1 *"},
        removed_but_used={"weekly": "0 0 8 1 *"},
    )
    memory = Memory(tmp_path, "api", POOL)
    promise = Promise(POOL, 60, server, memory, first, lambda: None)
    deployments.ensure_pool(client, POOL)
    wrong = replace(promise, plan={**first, "deployments": [{**first["deployments"][0], "entrypoint": "flows.none.x"}]})
    with pytest.raises(PrefectFailed, match="to accept .*prefect.yaml; found: .*; correct that, then start again"):
        deployments.deploy(client, wrong)
    # As it is advised.
    deployed = deployments.deploy(client, promise)
    assert (deployed.kept, deployed.removed, deployed.refused) == ((), (), {})
    assert set(deployed.changed) == {deployment["name"] for deployment in promise.plan["deployments"]}
    assert {name: len(crons) for name, crons in schedules_by_deployment(client).items()} == {
        **dict.fromkeys(("all_taken_out", "renamed", "unchanged", "removed", "removed_but_used"), 1),
        "taken_out": 2,
    }
    for name in ("taken_out", "all_taken_out", "renamed", "unchanged", "removed_but_used"):
        make(client, name, "0 0 1 2 *")
    make(client, "taken_out", "0 0 1 3 *", slug="mine")

    then = planned(
        tmp_path,
        taken_out={"-": "0 0 3 1 *"},
        all_taken_out=None,
        renamed={"yearly": "0 0 5 1 *"},
        unchanged={"weekly": "0 0 6 1 *"},
        new={"weekly": "0 0 9 1 *"},
    )
    deployed = deployments.deploy(client, replace(promise, plan=then), Remembered())
    assert schedules_by_deployment(client) == {
        "taken_out": {"0 0 3 1 *", "0 0 1 2 *", "0 0 1 3 *"},
        "all_taken_out": {"0 0 1 2 *"},
        "renamed": {"0 0 5 1 *", "0 0 1 2 *"},
        "unchanged": {"0 0 6 1 *", "0 0 1 2 *"},
        "removed_but_used": {"0 0 1 2 *"},
        "new": {"0 0 9 1 *"},
    }
    assert deployed.kept == ("unchanged",)
    assert set(deployed.removed) == {
        "the schedule weekly of taken_out",
        "the schedule weekly of all_taken_out",
        "the schedule weekly of renamed",
        "the deployment removed",
        "the schedules of removed_but_used that came from prefect.yaml",
    }


@pytest.mark.flow
def test_the_users_own_files_are_deployed_and_dropped_and_keep_no_other_from_that(
    client: SyncPrefectClient, server: dict[str, str], tmp_path: Path
):
    plan = planned(tmp_path, first={"weekly": YEARLY})
    good, bad = planned(tmp_path, own={"own": YEARLY}, refused={"own": YEARLY})["deployments"]
    # The server says so.
    bad["parameters"] = {"profile": "quick"}
    plans = tuple(OwnPlan(tmp_path / f"{d['name']}.prefect.yaml", d) for d in (good, bad))
    own = Own("/a store", plans)
    promise = Promise(POOL, 60, server, Memory(tmp_path, "api", POOL), plan, lambda: None, own)
    deployments.ensure_pool(client, POOL)
    deployed = deployments.deploy(client, promise)
    (words,) = deployed.refused.values()
    assert [*deployed.refused] == [plans[1].digest]
    assert f"to accept {plans[1].file}; found: " in words
    assert schedules_by_deployment(client) == {"first": {YEARLY}, "own": {YEARLY}}

    def dropped(own: Own) -> set[str]:
        return {*deployments.see(client, POOL, plan, own).dropped}

    assert dropped(Own("/a store")) == {"own"}
    # Its file is broken; the list of the store is; another store's `idxflow up`; one of an earlier version.
    for other in (Own("/a store", held=frozenset({"own"})), Own("/a store", is_complete=False), Own("/b store"), Own()):
        assert dropped(other) == set()
    make(client, "own", "0 0 1 2 *")
    deployed = deployments.deploy(client, replace(promise, own=Own("/a store")))
    assert deployed.removed == ("the schedules of own that came from its own file",)
    assert schedules_by_deployment(client) == {"first": {YEARLY}, "own": {"0 0 1 2 *"}}
    # Scheduled again.
    deployments.deploy(client, replace(promise, own=Own("/a store", plans[:1])))
    assert schedules_by_deployment(client) == {"first": {YEARLY}, "own": {YEARLY, "0 0 1 2 *"}}


@pytest.mark.parametrize("cron", ["0 3 31 2 *", "0 3 30 2 *", "0 3 31 4,6,9,11 *", "not a cron", "0 25 * * *"])
def test_a_schedule_that_never_comes_due_is_refused(tmp_path: Path, cron: str):
    with pytest.raises(ConfigError, match="expected schedules that come due for the deployment mnist; "):
        planned(tmp_path, digits={"weekly": YEARLY}, mnist={"never": cron})


def test_a_leap_day_comes_due(tmp_path: Path):
    assert planned(tmp_path, mnist={"leap": "0 0 29 2 *"})["deployments"]


def test_the_file_that_comes_with_idxflow_is_taken():
    assert [d["name"] for d in read_plan()["deployments"]] == ["digits", "inbox", "mnist", "study", "drift", "garbage"]
