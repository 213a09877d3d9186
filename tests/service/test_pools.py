"""`idxflow up --pool`: deploys to any work pool that exists, so that its workers, wherever they are, can run it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkPool
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import diagnosis, own_schedules
from flows.own_schedules import Times
from flows.service import own_plans
from flows.service.deployments import read_plan
from flows.service.pools import Placement, Wanted, placed
from flows.settings import POOL
from storage.errors import ConfigError
from storage.store import Store
from tests.conftest import write_tiny
from tests.support import commands
from tests.support.kubernetes_api import simulated_cluster
from tests.support.operated import fork_flow_runs, post, prefect, until, worker
from tests.support.servers import HTTP, ROOT, prefect_server
from tests.support.up import command, going

KUBERNETES = ROOT / "deploy/kubernetes"
BUCKET = "s3://bucket/idxflow"
IMAGE = 'image = "registry.example.org/idxflow:1"\n'
IN_BUCKET = f'[env]\nIDXFLOW_STORE = "{BUCKET}"\n'


def a_pool(kind: str, name: str = "team", template: dict[str, Any] | None = None) -> WorkPool:
    """A work pool with Prefect's own base job template of this type, as its server has it."""
    return WorkPool(name=name, type=kind, base_job_template=template or TEMPLATES[kind])


def _templates() -> dict[str, dict[str, Any]]:
    import prefect.server.api.collections_data.views as views

    packages = json.loads((Path(views.__path__[0]) / "aggregate-worker-metadata.json").read_text())
    return {
        kind: worker["default_base_job_configuration"] for types in packages.values() for kind, worker in types.items()
    }


TEMPLATES = _templates()
Place = Callable[..., Placement]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Return how `up` deploys to a pool, with this text as the file of job variables."""
    monkeypatch.delenv("IDXFLOW_STORE", raising=False)

    def place(pool: WorkPool, text: str = "", plan: dict[str, Any] | None = None, **options: str) -> Placement:
        file = tmp_path / "job.toml"
        file.write_text(text, encoding="utf-8")
        return placed(pool, Wanted(str(file), **options), plan or {})

    return place


def refused(place: Place, *arguments: Any, **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        place(*arguments, **options)
    return str(caught.value)


@pytest.mark.remedies("flows.service.pools:_read", "flows.service.pools:_check", "flows.service.pools:_read:2")
def test_job_variables_are_those_of_the_pool(place: Place):
    pool = a_pool("kubernetes")
    sentence = refused(place, pool, IMAGE + 'memory_limt = "4Gi"\n')
    assert "expected job variables of the work pool team, which is of type kubernetes (name, env, " in sentence
    assert "found memory_limt (did you mean memory_limit?); correct its spelling" in sentence
    sentence = refused(place, pool, IMAGE + "memory_limit = 4\n")
    assert sentence.endswith("expected memory_limit to be a string, as the work pool team has it; found 4; correct it")
    sentence = refused(place, pool, IMAGE + 'image_pull_policy = "always"\n')
    assert "expected image_pull_policy to be one of IfNotPresent, Always, Never" in sentence
    assert "expected env.A to be a string" in refused(place, pool, IMAGE + "[env]\nA = 1\n")
    sentence = refused(place, pool, IMAGE + IN_BUCKET + 'AWS_SECRET_ACCESS_KEY = "canary"\n')
    assert "expected no secret in env" in sentence
    assert "found AWS_SECRET_ACCESS_KEY; remove it" in sentence
    assert "canary" not in sentence
    assert "found IDXFLOW_SOURCE" in refused(
        place, pool, IMAGE + IN_BUCKET + 'IDXFLOW_SOURCE = "https://me:canary@a/b"\n'
    )
    variables = place(pool, IMAGE + 'memory_limit = "4Gi"\n' + IN_BUCKET).job_variables
    assert variables["memory_limit"] == "4Gi"
    assert variables["env"] == {"IDXFLOW_STORE": BUCKET}


def test_what_a_pool_of_ones_own_accepts_is_checked_as_well(place: Place):
    ours = a_pool("kubernetes", template=json.loads((KUBERNETES / "base/work-pool.json").read_text()))
    assert "expected gpu to be an integer" in refused(place, ours, IMAGE + 'gpu = "1"\n' + IN_BUCKET)
    assert "expected gpu to be such that minimum holds: 1" in refused(place, ours, IMAGE + "gpu = 0\n" + IN_BUCKET)
    assert place(ours, IMAGE + "gpu = 1\n" + IN_BUCKET).job_variables["gpu"] == 1


@pytest.mark.remedies("flows.service.pools:_check_image")
def test_a_container_needs_an_image_with_idxflow(place: Place):
    pool = a_pool("docker")
    sentence = refused(place, pool, IN_BUCKET)
    assert "expected an image with idxflow for the work pool team" in sentence
    advised = re.search('put the one of deploy/Dockerfile there: (image = ".*")$', sentence)[1]
    assert place(pool, f"{advised}\n{IN_BUCKET}").job_variables["image"] == "registry/idxflow:tag"


@pytest.mark.remedies("flows.service.pools:_with_store", "flows.service.pools:_with_store:2")
def test_runs_elsewhere_need_a_store_that_they_reach(place: Place, monkeypatch: pytest.MonkeyPatch):
    pool = a_pool("kubernetes")
    sentence = refused(place, pool, IMAGE)
    assert f"found {ROOT / 'store'}, a folder of this machine; give an address" in sentence
    assert place(pool, IMAGE, store=BUCKET).job_variables["env"] == {"IDXFLOW_STORE": BUCKET}
    two = refused(place, pool, IMAGE + IN_BUCKET, store="s3://another/idxflow")
    assert f"found s3://another/idxflow (--store), and {BUCKET} (env of the job variables)" in two
    assert place(pool, IMAGE + IN_BUCKET, store=BUCKET).job_variables["env"] == {"IDXFLOW_STORE": BUCKET}
    monkeypatch.setenv("IDXFLOW_STORE", BUCKET)
    assert place(pool, IMAGE).job_variables["env"] == {"IDXFLOW_STORE": BUCKET}


def test_a_folder_in_a_container_is_warned_of_unless_it_is_a_volume(place: Place):
    folder = '[env]\nIDXFLOW_STORE = "/data/store"\n'
    (warning,) = place(a_pool("kubernetes"), IMAGE + folder).warnings
    assert "the store /data/store is a folder in the container of each run, and is lost with it" in warning
    assert place(a_pool("docker"), IMAGE + folder).warnings
    assert place(a_pool("docker"), IMAGE + 'volumes = ["idxflow:/data"]\n' + folder).warnings == ()


@pytest.mark.remedies("flows.service.pools:_checkout", "flows.service.pools:_checkout:2")
def test_the_code_is_where_the_image_has_it(place: Place):
    pool = a_pool("docker")
    assert place(pool, IMAGE + IN_BUCKET).checkout == "/opt/idxflow"
    assert place(pool, IMAGE + IN_BUCKET, checkout="/srv/idxflow").checkout == "/srv/idxflow"
    assert "found 'srv'; give one that begins with /" in refused(place, pool, IMAGE + IN_BUCKET, checkout="srv")
    # Somebody fetches the code.
    plan = {"pull": [{"prefect.deployments.steps.git_clone": {"repository": "https://example.org/idxflow"}}]}
    assert place(pool, IMAGE + IN_BUCKET, plan).checkout == ""
    assert "expected no --checkout" in refused(place, pool, IMAGE + IN_BUCKET, plan, checkout="/srv/idxflow")


def test_the_pool_of_up_itself_is_as_before(place: Place):
    placement = place(a_pool("process", POOL), store="/somewhere")
    assert placement == Placement()
    plan: dict[str, Any] = {"deployments": [{"name": "digits"}]}
    placement.apply(plan, POOL)
    assert plan == {"deployments": [{"name": "digits", "work_pool": {"name": POOL}}]}


def test_a_data_set_in_files_of_this_machine_is_not_deployed_elsewhere(tmp_path: Path):
    store = Store(tmp_path / "store")
    manifest = write_tiny(tmp_path).manifest
    own_schedules.schedule(store, manifest, Times("0 0 1 1 *", "UTC"))
    lines: list[str] = []
    here = own_plans.OwnFiles(store.root, lines.append).read(read_plan())
    assert ([plan.name for plan in here.plans], lines) == (["tiny"], [])
    own = own_plans.OwnFiles(store.root, lines.append, "k8s").read(read_plan())
    # What the server has of it stays.
    assert (own.plans, own.held) == ((), {"tiny"})
    (line,) = lines
    assert line.endswith("found k8s; the data set tiny is not deployed there")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user whose server runs without `up`."""
    with prefect_server(tmp_path_factory.mktemp("home")) as (_, environment):
        yield {**environment, "PREFECT_WORKER_QUERY_SECONDS": "2"}


@pytest.fixture(scope="module")
def client(fleet: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: fleet["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        yield client


def deployments(fleet: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {deployment["name"]: deployment for deployment in post(fleet, "deployments/filter", {})}


def up(fleet: dict[str, str], *arguments: str) -> str:
    ended = command(fleet, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.flow
@pytest.mark.remedies("flows.service.deployments:found_pool")
def test_a_deployed_run_is_carried_out_by_a_worker_of_the_pool(
    fleet: dict[str, str], client: SyncPrefectClient, tmp_path: Path
):
    variables, store = tmp_path / "job.toml", tmp_path / "store"
    variables.write_text(f'env = {{ IDXFLOW_STORE = "{store}" }}\n')
    words = ("--pool", "team", "--job-variables", str(variables))
    unknown = command(fleet, *words)
    assert unknown.returncode == 2
    create = re.search(r"`idxflow (prefect work-pool create team --type) kubernetes`", unknown.stderr)[1]
    prefect(fleet, *create.split()[1:], "process")
    fork_flow_runs(client, "team")

    output = up(fleet, *words)
    assert "to the work pool team (type process); changed: " in output
    assert "no worker polls the pool team yet" in output
    assert output.rstrip().endswith("deployed; nothing was started")
    start = diagnosis._worker(client, "idxflow up").remedy
    assert start == "idxflow prefect worker start --pool team --type process, where its runs are to be started from"
    body = {"parameters": {"dataset": "digits", "profile": "fast"}}
    run = post(fleet, f"deployments/{deployments(fleet)['digits']['id']}/create_flow_run", body)["id"]
    words = start.partition(",")[0].split()[2:]
    with worker(*words, environment=fleet, home=tmp_path):
        state = until(lambda: ended(fleet, run))
    assert (state["type"], state["message"][:11]) == ("COMPLETED", "promoted v1")
    assert (store / "digits").is_dir()


@pytest.mark.flow
def test_in_its_own_pool_it_runs_a_worker_beside_a_server_that_stays(fleet: dict[str, str], tmp_path: Path):
    with going(fleet, tmp_path / "up.log", forked=True) as service:
        assert "found a Prefect server" in service.output
        assert service.output.rstrip().endswith("Ctrl-C stops worker")
        service.process.terminate()
        assert service.process.wait(240) == 0
    assert HTTP.get(f"{fleet['PREFECT_API_URL']}/health").json() is True
    assert deployments(fleet)["digits"]["work_pool_name"] == POOL


def ended(fleet: dict[str, str], run: str) -> dict[str, Any] | None:
    state = HTTP.get(f"{fleet['PREFECT_API_URL']}/flow_runs/{run}").json()["state"]
    return state if state["type"] not in ("SCHEDULED", "PENDING", "RUNNING") else None


@pytest.mark.flow
def test_prefects_kubernetes_worker_creates_a_job_as_the_files_say(fleet: dict[str, str], tmp_path: Path):
    template = KUBERNETES / "base/work-pool.json"
    prefect(fleet, "work-pool", "create", "k8s", "--type", "kubernetes", "--base-job-template", str(template))
    variables = tmp_path / "job.toml"
    example = (KUBERNETES / "overlays/example/job.toml").read_text(encoding="utf-8")
    variables.write_text(example.replace("# gpu =", "gpu ="))
    words = ("--pool", "k8s", "--job-variables", str(variables))
    assert "with the code in /opt/idxflow; changed: " in up(fleet, *words)
    before = deployments(fleet)
    assert "with the code in /opt/idxflow; nothing has changed" in up(fleet, *words)
    assert [without_time(one) for one in deployments(fleet).values()] == [without_time(one) for one in before.values()]
    digits = before["digits"]
    in_image = {"prefect.deployments.steps.set_working_directory": {"directory": "/opt/idxflow"}}
    assert digits["pull_steps"] == [in_image]

    run, job = created_job(fleet, digits["id"], tmp_path)
    assert job["metadata"]["labels"]["prefect.io/flow-run-id"] == run
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.org/idxflow:1"
    assert container["args"] == ["prefect", "flow-run", "execute"]
    requests, limits = {"cpu": "1", "memory": "2Gi"}, {"memory": "4Gi", "nvidia.com/gpu": 1}
    assert container["resources"] == {"requests": requests, "limits": limits}
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    expected = {"IDXFLOW_STORE": BUCKET, "PREFECT_API_URL": fleet["PREFECT_API_URL"], "PREFECT__FLOW_RUN_ID": run}
    assert given.items() >= expected.items()
    assert container["envFrom"] == [{"secretRef": {"name": "idxflow-store"}}]
    assert pod["securityContext"]["runAsNonRoot"] is True


def created_job(fleet: dict[str, str], deployment: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Have Prefect's worker take a run of a deployment; return the run, and what the worker has the cluster create."""
    with simulated_cluster() as cluster:
        configuration = {"config": cluster.configuration, "context_name": "simulated"}
        body = {"parameters": {"dataset": "digits"}, "job_variables": {"cluster_config": configuration}}
        run = post(fleet, f"deployments/{deployment}/create_flow_run", body)["id"]
        # It would watch pods, of which this cluster has none.
        environment = {**fleet, "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false"}
        start = ("worker", "start", "--pool", "k8s", "--type", "kubernetes", "--run-once")
        ended = commands.prefect(*start, env=environment, cwd=folder)
        assert cluster.jobs, ended.stdout + ended.stderr
    ((namespace, job),) = cluster.jobs
    assert namespace == "idxflow"
    return run, job


def without_time(deployment: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in deployment.items() if key != "updated"}
