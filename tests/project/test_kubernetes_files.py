"""`deploy/kubernetes`: a cluster would take it, without a secret in it, and the programs take their commands."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed.cli import dask_scheduler, dask_worker
from prefect.client.schemas.objects import WorkPool
from prefect_kubernetes import KubernetesWorker

from flows.commands.cli import app
from flows.commands.up import up
from flows.service.pools import IMAGE_CHECKOUT, Wanted, placed
from tests.support.kubernetes_models import check, containers, pod_of, rendered
from tests.support.servers import ROOT

FOLDER = ROOT / "deploy/kubernetes"
EXAMPLE = FOLDER / "overlays/example"
RESOURCES = rendered(EXAMPLE)
TEMPLATE = json.loads((FOLDER / "base/work-pool.json").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs/how-to/fleet.md").read_text(encoding="utf-8")
PODS = {resource["metadata"]["name"]: pod_of(resource) for resource in RESOURCES if pod_of(resource)}
CONTAINERS = [(resource["metadata"]["name"], one) for resource in RESOURCES for one in containers(resource)]
RUN = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]
IS_SECRET = re.compile(r"(SECRET|PASSWORD|TOKEN|KEY|AUTH_STRING)$")
POOL = "kubernetes"
TLS = "/etc/idxflow/tls"
NAME = "app.kubernetes.io/name"
PART = "app.kubernetes.io/component"


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_the_cluster_knows_all_that_a_resource_says(resource: dict[str, Any]):
    check(resource)
    assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "idxflow"


def test_the_check_finds_what_is_wrong():
    (postgres,) = (one for one in RESOURCES if one["kind"] == "StatefulSet")
    spec = postgres["spec"]
    without_selector = {key: value for key, value in spec.items() if key != "selector"}
    for wrong in ({**spec, "replicas": "1"}, {**spec, "replica": 1}, without_selector, {**spec, "template": []}):
        with pytest.raises(AssertionError, match="StatefulSet idxflow-postgres.spec"):
            check({**postgres, "spec": wrong})


def test_no_value_of_a_secret_is_in_the_files_and_the_guide_makes_each():
    assert "Secret" not in {resource["kind"] for resource in RESOURCES}
    named = set[str]()
    for _, container in CONTAINERS:
        for entry in container.get("env", ()):
            where = entry.get("valueFrom", {}).get("secretKeyRef")
            # That of a certificate is a path, that of the worker a name.
            assert where or not IS_SECRET.search(entry["name"]) or entry["value"] == "auth-string", entry["name"]
            named |= {(where["name"], where["key"])} if where else set()
        named |= {(source["secretRef"]["name"], "") for source in container.get("envFrom", ())}
    properties = TEMPLATE["variables"]["properties"]
    named |= {(properties[name]["default"], "") for name in ("store_secret", "dask_secret")}
    for secret, key in named:
        command = re.search(rf"create secret generic {secret}\b((?:[^\n]*\\\n)*[^\n]*)", GUIDE)
        assert command, secret
        assert key in command[1], (secret, key)


@pytest.mark.parametrize("pod", [*PODS.values(), RUN], ids=[*PODS, "a run"])
def test_pods_are_confined(pod: dict[str, Any]):
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    # A Service's variables would be taken for settings.
    assert spec["enableServiceLinks"] is False
    assert "serviceAccountName" in spec or spec["automountServiceAccountToken"] is False
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert places >= ({"/tmp"} if container["image"] == "postgres:15" else {"/tmp", "/data"})


def test_pods_say_what_they_need_and_whether_they_are_well():
    for name, pod in PODS.items():
        for container in pod["spec"]["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert {"startupProbe", "livenessProbe"} <= container.keys(), name


def test_policies_services_and_budgets_select_pods_that_have_these_ports():
    labels = [pod["metadata"]["labels"] for pod in (*PODS.values(), RUN)]
    ports = {
        pod["metadata"]["labels"][PART]: {port["name"] for one in pod["spec"]["containers"] for port in one["ports"]}
        for pod in PODS.values()
    }
    for resource in RESOURCES:
        spec = resource.get("spec", {})
        if resource["kind"] == "Service":
            assert spec["selector"] in labels
            assert {port["targetPort"] for port in spec["ports"]} <= ports[spec["selector"][PART]]
        elif resource["kind"] == "PodDisruptionBudget":
            assert spec["selector"]["matchLabels"] in labels
        elif resource["kind"] == "NetworkPolicy":
            part = spec["podSelector"]["matchLabels"].get(PART)
            assert part is None or part in ports
            for rule in spec.get("ingress", ()):
                assert {port["port"] for port in rule.get("ports", ())} <= ports[part]
                for source in rule["from"]:
                    assert _parts(source["podSelector"]) <= {one[PART] for one in labels}


def _parts(selector: dict[str, Any]) -> set[str]:
    """Return the components that a selector takes, all of idxflow."""
    if "matchLabels" in selector:
        assert selector["matchLabels"][NAME] == "idxflow"
        return {selector["matchLabels"][PART]}
    values = {one["key"]: set(one["values"]) for one in selector["matchExpressions"] if one["operator"] == "In"}
    assert values[NAME] == {"idxflow"}
    return values[PART]


def test_the_programs_take_their_commands(tmp_path: Path):
    commands = [container["command"] for _, container in CONTAINERS if "command" in container]
    (deploy,) = (words for words in commands if words[0] == "idxflow")
    function, arguments, _ = app.parse_args(deploy[1:], exit_on_error=False, print_error=False)
    assert function is up
    assert arguments.arguments["pool"] == POOL
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (tmp_path / name).touch()
    dask = [[word.replace(TLS, str(tmp_path)) for word in words] for words in commands if words[0] == "dask"]
    for program, words in zip((dask_scheduler, dask_worker), dask, strict=True):
        context = program.main.make_context(words[1], words[2:])
        assert context.params["tls_ca_file"] == f"{tmp_path}/ca.crt"
    from prefect.cli._app import _app as prefect

    for words in commands:
        if words[0] == "prefect":
            prefect.parse_args(words[1:], exit_on_error=False, print_error=False)
            assert POOL in words or words[1] == "server"


def test_the_template_is_prefects_own_with_more():
    usual = KubernetesWorker.get_default_base_job_template()
    properties = TEMPLATE["variables"]["properties"]
    assert {name: properties.get(name) for name in usual["variables"]["properties"]} == usual["variables"]["properties"]
    job, its = TEMPLATE["job_configuration"], usual["job_configuration"]
    assert {**job, "job_manifest": None} == {**its, "job_manifest": None}
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(job)))
    assert used == properties.keys()


def test_the_examples_job_variables_fit_its_kustomization():
    pool = WorkPool(name=POOL, type="kubernetes", base_job_template=TEMPLATE)
    placement = placed(pool, Wanted(str(EXAMPLE / "job.toml")), {})
    assert placement.warnings == ()
    assert placement.checkout == IMAGE_CHECKOUT
    kustomization = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text(encoding="utf-8"))
    (image,) = kustomization["images"]
    assert placement.job_variables["image"] == f"{image['newName']}:{image['newTag']}"
    assert placement.job_variables["namespace"] == kustomization["namespace"]
    # What it has as comments is accepted, too.
    text = (EXAMPLE / "job.toml").read_text(encoding="utf-8")
    more = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    assert more.keys() > placement.job_variables.keys()
    assert more.keys() <= TEMPLATE["variables"]["properties"].keys()


def test_a_run_reaches_what_the_policies_let_it_reach():
    assert RUN["metadata"]["labels"] == {NAME: "idxflow", PART: "run"}
    (container,) = RUN["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "{{ store_secret }}"}}]
