"""`idxflow manifest`: what it writes can be used as it is, whatever valid set it has read."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows.manifest import manifest_of
from storage import catalog, idx
from storage.catalog import DEFAULT_FILES, Limits
from storage.errors import ConfigError, FormatError, IdxflowError
from storage.store import Store
from tests.conftest import bars
from tests.runs import hopped

Arrays = dict[str, np.ndarray]


def written(folder: Path, arrays: Arrays) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for role, array in arrays.items():
        (folder / DEFAULT_FILES[role]).write_bytes(gzip.compress(idx.encode(array), mtime=0))
    return folder


def of(change: Callable[[np.ndarray], np.ndarray], arrays: Arrays | None = None) -> Arrays:
    """Return a learnable set with all images changed."""
    made = arrays or bars(120, 30, 3, (9, 7))
    return {role: change(array).astype(np.uint8) if "images" in role else array for role, array in made.items()}


def planes() -> Arrays:
    """Images of one value each, which tells their class: below 85, below 170, above. No value is in both splits."""
    values = {"train": np.arange(0, 256, 2, np.uint8), "test": np.arange(1, 256, 10, np.uint8)}
    made = {}
    for split, value in values.items():
        made[f"{split}-images"] = np.broadcast_to(value[:, None, None], (len(value), 4, 4)).copy()
        made[f"{split}-labels"] = np.minimum(value // 85, 2).astype(np.uint8)
    return made


SETS = {
    "0 to 255": (of(lambda images: images), Limits()),
    "0 to 16": (of(lambda images: images // 16 + images // 255), Limits(min_pixel_max=16)),
    # The noise keeps images apart that would be equal otherwise.
    "0 to 1": (of(lambda images: np.where(images > 150, 1, images % 2)), Limits(min_pixel_max=1)),
    "inverted, from 100 on": (of(lambda images: 255 - images * (155 / 255)), Limits(max_pixel_min=100)),
    "70 to 80": (of(lambda images: 70 + images * (10 / 255)), Limits(min_pixel_max=80, max_pixel_min=70)),
    "planes": (planes(), Limits(max_blank=1)),
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_any_range_is_valid_and_trained_with_the_manifest_that_is_written(store: Store, tmp_path, name: str):
    arrays, limits = SETS[name]
    manifest = tmp_path / "mine.toml"
    manifest.write_text(manifest_of(written(tmp_path / "mine", arrays)), encoding="utf-8")
    assert catalog.read(manifest).limits == limits
    outcome = hopped(store, dataset_file=str(manifest), epochs=2)
    assert outcome["error"] is None or outcome["error"]["exit_code"] == 5
    assert outcome["test_accuracy"] is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train-images": np.zeros((120, 9, 7), ">f4")}, "uint8"),
        ({"test-images": np.zeros((30, 9, 8), np.uint8)}, "one size in both splits"),
        ({"test-images": np.zeros((29, 9, 7), np.uint8)}, "as many labels as images"),
        ({"train-images": np.zeros((120, 63), np.uint8)}, "three dimensions"),
        ({"train-images": np.zeros((1, 4097, 1), np.uint8), "train-labels": np.ones(1, np.uint8)}, "at most 4096"),
        ({"test-labels": np.zeros((30, 2), np.uint8)}, "labels of one dimension"),
        ({"test-labels": np.zeros(30, ">f4")}, "whole numbers"),
        ({"test-labels": np.full(30, -1, np.int8)}, "found -1 to -1"),
        ({"test-labels": np.full(30, 256, ">i2")}, "found 256 to 256"),
    ],
)
def test_what_no_manifest_could_describe_is_said_at_once(tmp_path: Path, change: Arrays, said: str):
    folder = written(tmp_path / "mine", bars(120, 30, 3, (9, 7)) | change)
    with pytest.raises(FormatError, match=said):
        manifest_of(folder)


def test_one_class_is_none_to_tell_apart(tmp_path: Path):
    made = bars(20, 10, 2, (9, 7)) | {"train-labels": np.zeros(20, np.uint8), "test-labels": np.zeros(10, np.uint8)}
    with pytest.raises(FormatError, match="found only the label 0"):
        manifest_of(written(tmp_path / "mine", made))


def test_what_may_be_a_fault_of_the_data_is_only_proposed(store: Store, tmp_path: Path):
    made = bars(400, 30, 3, (9, 7))
    made["train-images"][:3] = 7
    made["train-labels"][3:] = np.where(made["train-labels"][3:] == 2, 1, made["train-labels"][3:])
    manifest = tmp_path / "mine.toml"
    text = manifest_of(written(tmp_path / "mine", made))
    manifest.write_text(text, encoding="utf-8")
    assert (
        "# 3 of 430 images have one value in all pixels, which is refused unless you say:\n# max_blank = 0.0075" in text
    )
    assert "# min_class_share = 0.0025" in text
    assert hopped(store, dataset_file=str(manifest))["error"]["exit_code"] == 3
    proposed = text.replace("# [limits]", "[limits]")
    for key in ("max_blank", "min_class_share"):
        proposed = proposed.replace(f"# {key}", key)
    manifest.write_text(proposed, encoding="utf-8")
    limits = catalog.read(manifest).limits
    assert (limits.max_blank, limits.min_class_share) == (0.0075, 0.0025)


def test_labels_that_no_row_has_are_said(tmp_path: Path):
    made = bars(120, 30, 3, (9, 7))
    shifted = {role: array + 1 if "labels" in role else array for role, array in made.items()}
    assert "# No row of a split has a label of [0], which is refused" in manifest_of(
        written(tmp_path / "mine", shifted)
    )


def test_without_digests_other_archives_of_these_names_are_the_data(store: Store, tmp_path: Path):
    folder, manifest = written(tmp_path / "mine", bars(120, 30, 3, (9, 7))), tmp_path / "mine.toml"
    manifest.write_text(manifest_of(folder, digests=False), encoding="utf-8")
    assert not any(spec.pinned or spec.bytes for spec in catalog.read(manifest).archives)
    written(folder, bars(121, 31, 3, (9, 7), seed=2))
    assert hopped(store, dataset_file=str(manifest))["error"] is None


@pytest.mark.parametrize("name", ["ümläut 😀", 'quote " and \\', "tab\tand\x7f", "mnist", "..."])
def test_a_folder_of_any_name_gives_a_manifest_that_can_be_read(tmp_path: Path, name: str):
    folder = written(tmp_path / name, bars(20, 10, 2, (9, 7)))
    manifest = tmp_path / "any.toml"
    manifest.write_text(manifest_of(folder), encoding="utf-8")
    dataset = catalog.read(manifest)
    assert dataset.source == folder
    assert dataset.name not in catalog.names()


def test_a_name_that_no_manifest_can_hold_is_said(tmp_path: Path):
    folder = written(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), bars(20, 10, 2, (9, 7)))
    with pytest.raises(ConfigError, match="in UTF-8"):
        manifest_of(folder)


@pytest.mark.parametrize("name", ["My Data", "mnist", "", "a" * 65])
def test_a_name_that_the_next_command_would_refuse_is_refused(tmp_path: Path, name: str):
    folder = written(tmp_path / "mine", bars(20, 10, 2, (9, 7)))
    with pytest.raises(IdxflowError, match="--name: expected"):
        manifest_of(folder, name)
