"""The contract of a data set, before any data is seen."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import pytest

from expectations import suites
from storage.datasets import catalog
from storage.datasets.catalog import Dataset, Ink
from storage.datasets.manifest import Limits

NAMES = catalog.names()


def every_suite(dataset: Dataset) -> list[suites.Suite]:
    return [
        suites.archives(dataset),
        *(
            make(dataset, split)
            for split in ("train", "test")
            for make in (suites.images, suites.match, suites.classes)
        ),
    ]


def columns(suite: suites.Suite) -> set[str]:
    return {e.column for e in suite.expectations}


@pytest.mark.parametrize("name", NAMES)
def test_no_suite_is_empty_and_no_expectation_is_twice_in_one(name: str):
    for suite in every_suite(catalog.find(name)):
        assert suite.expectations
        assert len({e.name for e in suite.expectations}) == len(suite.expectations)


def test_a_split_is_held_to_everything_known_of_it():
    suite = suites.images(catalog.find("mnist"), "test")
    assert columns(suite) == {
        "",
        "label",
        "mean",
        "centroid_hit",
        "pixel_max",
        "pixel_min",
        "blank",
        "duplicate",
        "conflict",
        "leaked",
    }
    assert columns(suites.classes(catalog.find("mnist"), "test")) == {"share", "imbalance"}


def test_only_test_images_can_be_leaked():
    assert "leaked" not in columns(suites.images(catalog.find("mnist"), "train"))


@pytest.mark.parametrize("name", NAMES)
def test_only_repeats_and_imbalance_are_warnings(name: str):
    warnings = {e.column for s in every_suite(catalog.find(name)) for e in s.expectations if e.severity == "warning"}
    assert warnings == {"duplicate", "conflict", "imbalance"}


@pytest.mark.parametrize(
    ("change", "column", "limit"),
    [
        ({"min_class_share": 0.05}, "share", "at least 5%"),
        ({"max_class_share": 0.5}, "share", "at most 50%"),
        ({"max_imbalance": 3.5}, "imbalance", "at most 3.5"),
        ({"max_duplicates": 0.25}, "duplicate", "at most 25%"),
        ({"max_conflicts": 0.125}, "conflict", "at most 12.5%"),
        ({"max_leaked": 0.002}, "leaked", "at most 0.2%"),
        ({"max_leaked": 0.0}, "leaked", "none"),
        ({"max_blank": 0.01}, "blank", "at most 1%"),
        ({"min_pixel_max": 16}, "pixel_max", "16 to 255"),
        ({"max_pixel_min": 3}, "pixel_min", "0 to 3"),
        ({"min_pixel_mean": 4, "max_pixel_mean": 6.5}, "mean", "4 to 6.5"),
        ({"max_label_chance": 0.001}, "by_chance", "probability at most 0.001"),
        ({"min_centroid_hit": 0.7}, "centroid_hit", "at least 70%"),
    ],
)
def test_each_limit_of_the_manifest_is_used(change: dict[str, float], column: str, limit: str):
    dataset = replace(catalog.find("mnist"), limits=Limits(**change))  # type: ignore[arg-type]
    (expectation,) = [
        e for s in every_suite(dataset)[-3:] for e in s.expectations if (e.column, e.limit) == (column, limit)
    ]
    assert set(re.findall("[a-z_]{4,}", expectation.setting.removeprefix("[limits]"))) >= set(change)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_failed_check_names_of_the_manifest_can_be_set_there(name: str):
    limits = {f.name for f in dataclasses.fields(Limits)}
    settings = {"[limits]": limits, "[rows]": {"train", "test"}, "image_shape": set(), "classes": {"labels"}}
    for expectation in (e for s in every_suite(catalog.find(name)) for e in s.expectations):
        table, *keys = expectation.setting.replace(" and ", " ").split() or [""]
        assert set(keys) <= settings.get(table, {"payload_sha256"} if table == "payload_sha256" else set())
        # The rest holds for any data: that the table is whole, and the file the one that was decoded.
        assert table or expectation.column in ("", "label", "mean", "rows_found", "content_found")


def test_a_share_of_nearest_means_is_a_limit_only_where_it_is_known():
    for limits, severity in ((Limits(), "warning"), (Limits(min_centroid_hit=0.7), "critical")):
        suite = suites.images(replace(catalog.find("mnist"), limits=limits), "train")
        assert [e.severity for e in suite.expectations if e.column == "centroid_hit"] == [severity]


def test_the_least_share_of_a_class_follows_their_number():
    assert Limits().least_class_share(10) == pytest.approx(0.01)
    assert Limits().least_class_share(250) == pytest.approx(0.0004)
    assert Limits(min_class_share=0.05).least_class_share(250) == 0.05


@pytest.mark.parametrize(
    ("ink", "limit", "name"),
    [
        ("bright", "at most 50%", "ink is bright: the border is in the darker half of the pixel range"),
        ("dark", "at least 50%", "ink is dark: the border is in the brighter half of the pixel range"),
    ],
)
def test_ink_is_critical_and_set_in_the_manifest(ink: Ink, limit: str, name: str):
    (expectation,) = suites.ground(ink, "test").expectations
    assert (expectation.column, expectation.limit, expectation.name) == ("ground", limit, name)
    assert (expectation.severity, expectation.setting) == ("critical", "ink")


def test_what_is_not_declared_is_not_expected(tmp_path: Path):
    manifest = tmp_path / "own.toml"
    manifest.write_text('name = "own"\nclasses = ["a", "b", "c"]\nimage_shape = [2, 2]\n', encoding="utf-8")
    own = catalog.read(manifest)
    assert columns(suites.archives(own)) == {"", "rows_found", "content_found", "shape_found"}
    assert [e.limit for e in suites.images(own, "test").expectations if "rows" in e.name] == ["at least 3"]
