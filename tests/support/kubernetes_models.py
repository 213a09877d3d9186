"""Kubernetes' resources as its API server would take them: checked by the models of its Python client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from kubernetes_asyncio import client

_SIMPLE = {"str": str, "int": int, "bool": bool, "float": float, "object": object}
_OF_MANY = re.compile(r"(list|dict)[\[(](?:str, )?(.*)[\])]")
_QUANTITIES = re.compile(r"\.(limits|requests)\.[^.]+$")
_KNOWN = {"apiVersion", "kind", "resources", "namespace", "images", "replicas", "configMapGenerator"}
_WITHOUT_NAMESPACE = ("Namespace",)


def check(resource: dict[str, Any]) -> None:
    """Fail if a resource has an unknown field, a value of another type, or lacks what is required."""
    name = f"{resource['kind']} {resource['metadata'].get('name', '')}"
    _built(f"V1{resource['kind']}", resource, name)


def _built(kind: str, value: Any, where: str) -> Any:
    if many := _OF_MANY.fullmatch(kind):
        assert isinstance(value, list if many[1] == "list" else dict), where
        items = enumerate(value) if many[1] == "list" else value.items()
        return [_built(many[2], item, f"{where}.{key}") for key, item in items]
    if kind in _SIMPLE:
        simple = str | int if _QUANTITIES.search(where) else _SIMPLE[kind]
        assert isinstance(value, simple), f"{where}: expected {kind}, found {value!r}"
        return value
    model = getattr(client, kind)
    names = {key: attribute for attribute, key in model.attribute_map.items()}
    assert isinstance(value, dict), f"{where}: expected {kind}, found {value!r}"
    assert value.keys() <= names.keys(), f"{where}: unknown {value.keys() - names.keys()}"
    kinds = model.openapi_types
    fields = {names[key]: _built(kinds[names[key]], item, f"{where}.{key}") for key, item in value.items()}
    try:
        # Refuses what lacks a required field.
        return model(**fields)
    except ValueError as error:
        raise AssertionError(f"{where}: {error}") from error


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Return the resources of a kustomize folder.

    This is no kustomize: it knows the few keys that these folders use, fails at others, and leaves out the digest that
    kustomize puts at the end of the names of generated ConfigMaps.
    """
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert wanted.keys() <= _KNOWN, wanted.keys() - _KNOWN
    found: list[dict[str, Any]] = []
    for name in wanted["resources"]:
        path = folder / name
        found += rendered(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    for generator in wanted.get("configMapGenerator", ()):
        data = {file: (folder / file).read_text(encoding="utf-8") for file in generator["files"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})
    for resource in found:
        _adapt(resource, wanted)
    return found


def _adapt(resource: dict[str, Any], wanted: dict[str, Any]) -> None:
    if wanted.get("namespace") and resource["kind"] not in _WITHOUT_NAMESPACE:
        resource["metadata"]["namespace"] = wanted["namespace"]
    for count in wanted.get("replicas", ()):
        if "replicas" in resource.get("spec", {}) and resource["metadata"]["name"] == count["name"]:
            resource["spec"]["replicas"] = count["count"]
    for container in containers(resource):
        for image in wanted.get("images", ()):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"


def pod_of(resource: dict[str, Any]) -> dict[str, Any]:
    """Return the template of the pods that a resource makes, with its metadata and spec; empty if it makes none."""
    return (resource.get("spec") or {}).get("template") or {}


def containers(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the containers of the pods that a resource makes, those that run first included."""
    spec = pod_of(resource).get("spec", {})
    return [*spec.get("initContainers", ()), *spec.get("containers", ())]
