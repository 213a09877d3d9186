"""The schema of the manifest: editors refuse what idxflow refuses, and the reference names every key."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from storage.datasets import catalog, json_schema
from storage.datasets.json_schema import Schema
from storage.datasets.training import TrainingConfig
from tests.support.badmanifests import MANIFESTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "manifest.md"
VALIDATOR = Draft7Validator(json.loads(json_schema.text()))
BEYOND_A_SCHEMA = {
    "a class with a control character",
    "a source with a NUL",
    "a mirror of an archive over two lines",
    "a mirror without digests",
    "archives of a ZIP file without digests",
    "tests of behaviour without a test",
    "patience for nothing",
    "momentum without effect",
    "one label too few",
    "labels and their base",
    "labels and a base of 0",
    "a base whose last label has 33 bits",
    "a share that is no number",
    "alpha no number",
    "more than can be a manifest",
    "a mirror that is a number",
    "a hexadecimal number of 5,000 digits",
    "slices by a column of labels that have one",
    "a floor of no class",
    "a floor of what slices are not by",
    "a floor of a fifth quarter",
    "a floor of a column that is no number",
    "slices by nothing",
}
"""What only idxflow refuses: it depends on several keys or on the machine, or JSON has no word for it."""


def test_the_file_is_that_of_the_model():
    assert json_schema.FILE.read_text(encoding="utf-8") == json_schema.text(), "run `make reference`"


@pytest.mark.parametrize("name", catalog.names())
def test_editors_accept_every_manifest_of_the_catalog(name: str):
    text = (catalog.CATALOG / f"{name}.toml").read_text(encoding="utf-8")
    first, _, _ = text.partition("\n")
    assert (catalog.CATALOG / first.removeprefix("#:schema ")).resolve() == json_schema.FILE
    assert list(VALIDATOR.iter_errors(tomllib.loads(text))) == []


WRONG = {case for case, (_, words) in MANIFESTS.items() if "in TOML" not in words}


@pytest.mark.parametrize("case", sorted(WRONG - BEYOND_A_SCHEMA))
def test_editors_refuse_a_wrong_manifest_too(case: str):
    assert list(VALIDATOR.iter_errors(tomllib.loads(MANIFESTS[case][0])))


def fields(model: Schema) -> list[tuple[str, Schema]]:
    tables = [model, *model["$defs"].values()]
    return [(key, field) for table in tables for key, field in table.get("properties", {}).items()]


def test_each_key_has_a_meaning_and_is_in_the_reference():
    page, model = PAGE.read_text(encoding="utf-8"), json_schema.of_manifest()
    for key, field in fields(model):
        assert field["description"].endswith((".", "…")), key
        if key not in TrainingConfig.model_fields:
            assert f"| `{key}` | {json_schema.in_words(json_schema.resolved(model, field))} |" in page
