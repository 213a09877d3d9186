"""Splits whose Parquet file has another schema or other rows, sealed as if they were good, met by whole runs.

No digest gives them away, so whoever reads the file must. The sentence names the file, and says what to
do: delete the entry's folder. Rows that only were written differently are the same rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import DamagedEntry
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tests.support.runs import QUICK, carried_out, run_with_prefect
from tests.support.tampering import reseal

pytestmark = pytest.mark.flow

PIXELS = 63
ROWS = 120


Change = Callable[[pa.Table], pa.Table]


def column(name: str, kind: pa.DataType, convert: Callable[[Any], Any] = lambda value: value) -> Change:
    """Return a change of a column's type, and of its values by `convert`."""

    def change(table: pa.Table) -> pa.Table:
        values = pa.array([convert(value) for value in table.column(name).to_pylist()], kind)
        place = table.schema.get_field_index(name)
        return table.set_column(place, pa.field(name, kind, nullable=False), values)

    return change


def with_null(name: str) -> Change:
    """Return a change that allows nulls in a column, and has one."""

    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(name).with_nullable(True)
        values = pa.array([None, *table.column(name).to_pylist()[1:]], field.type)
        return table.set_column(table.schema.get_field_index(name), field, values)

    return change


def with_metadata(**values: Any) -> Change:
    """Return a change of what the footer says about the split."""

    def change(table: pa.Table) -> pa.Table:
        known = json.loads(table.schema.metadata[b"idxflow"])
        return table.replace_schema_metadata({b"idxflow": json.dumps(known | values).encode()})

    return change


def renamed(table: pa.Table) -> pa.Table:
    names = pa.schema([table.schema.field("image"), table.schema.field("label").with_name("digit")])
    return pa.table(table.columns, names.with_metadata(table.schema.metadata))


REFUSED: dict[str, tuple[Change, str]] = {
    "no labels": (lambda table: table.drop_columns(["label"]), "found image: fixed_size_binary[63]"),
    "no images": (lambda table: table.drop_columns(["image"]), "found label: uint8"),
    "another name": (renamed, "found image: fixed_size_binary[63], digit: uint8"),
    "another order": (lambda table: table.select(["label", "image"]), "found label: uint8, image"),
    "a column more": (lambda table: table.append_column("weight", pa.array([1.0] * table.num_rows)), "weight: double"),
    "labels of 64 bits": (column("label", pa.int64()), "label: int64"),
    "labels as text": (column("label", pa.string(), str), "label: string"),
    "labels as fractions": (column("label", pa.float32(), float), "label: float"),
    "labels that may be null": (with_null("label"), "label: uint8 or null"),
    "images that may be null": (with_null("image"), "image: fixed_size_binary[63] or null"),
    "images a pixel short": (column("image", pa.binary(PIXELS - 1), lambda v: v[:-1]), "fixed_size_binary[62]"),
    "images of any length": (column("image", pa.binary()), "image: binary"),
    "images as lists": (column("image", pa.list_(pa.uint8()), list), "image: list<element: uint8>"),
    "no row": (lambda table: table.slice(0, 0), "expected 120 rows; found 0"),
    "a row less": (lambda table: table.slice(1), "expected 120 rows; found 119"),
    "a row more": (lambda table: pa.concat_tables([table, table.slice(0, 1)]), "expected 120 rows; found 121"),
    "another size of the images": (with_metadata(image_shape=[7, 10]), "found image: fixed_size_binary[63]"),
    "a size that is no size": (with_metadata(image_shape=["9", 7]), "expected the Parquet file of a split"),
    "no metadata": (lambda table: table.replace_schema_metadata({}), "it has no description of one"),
}


THROUGH_THE_FLOW = ("no labels", "labels of 64 bits", "labels that may be null", "images a pixel short", "a row less")


def split(store: Store, name: str = "train") -> Path:
    return next(store.entries("tiny", "decode").glob(f"*/{name}.parquet"))


def changed(path: Path, change: Change, **options: Any) -> None:
    """Write a split anew with a change, and seal it."""
    table = pq.read_table(path).combine_chunks()
    table = change(table.replace_schema_metadata(pq.read_metadata(path).metadata))
    pq.write_table(table, path, **{"write_page_checksum": True, "compression": "zstd"} | options)
    reseal(path.parent)


def assert_unharmed(store: Store) -> None:
    assert Registry(store, "tiny").champion().number == 1
    assert not verify(store).damage


@pytest.mark.parametrize("what", REFUSED)
def test_another_schema_or_count_is_refused_by_training(first: Path, copy: Store, what: str):
    change, message = REFUSED[what]
    changed(split(copy), change)
    with pytest.raises(DamagedEntry) as refused:
        carried_out(copy, first / "tiny.toml", seed=2)
    assert str(split(copy)) in str(refused.value)
    assert message in str(refused.value)
    assert str(refused.value).endswith(f"remove {split(copy).parent}, then run again")
    assert Registry(copy, "tiny").champion().number == 1


@pytest.mark.parametrize("what", THROUGH_THE_FLOW)
def test_and_ends_the_run_in_a_sentence(first: Path, copy: Store, what: str):
    change, message = REFUSED[what]
    path = split(copy)
    changed(path, change)
    # Another seed: the split is read by training, and nothing before it.
    outcome = run_with_prefect(first / "tiny.toml", copy.root, seed=2)
    assert (outcome["state"], outcome["error"]["kind"], outcome["error"]["exit_code"]) == ("failed", "DamagedEntry", 1)
    sentence = outcome["error"]["sentence"]
    assert str(path) in sentence
    assert message in sentence
    assert sentence.endswith(f"remove {path.parent}, then run again")
    assert "\n" not in sentence
    assert "train" not in outcome["steps"]
    assert_unharmed(copy)


def test_what_it_says_to_do_mends_it(first: Path, copy: Store):
    changed(split(copy), column("label", pa.int64()))
    assert run_with_prefect(first / "tiny.toml", copy.root, seed=2)["error"]["kind"] == "DamagedEntry"
    shutil.rmtree(split(copy).parent)
    outcome = run_with_prefect(first / "tiny.toml", copy.root, seed=2)
    assert outcome["state"] in ("promoted", "kept", "unchanged")
    again = {name for name, step in outcome["steps"].items() if not step["reused"]}
    # The seed draws the rows that are held out, so these are new, too.
    assert {"decode train", "normalize", "train"} <= again
    assert not {"decode test", "validate"} & again
    assert split(copy).read_bytes() == split(Store(first / "store")).read_bytes()
    assert not verify(copy).damage


def test_a_test_split_of_another_schema_scores_nothing(first: Path, copy: Store):
    path = split(copy, "test")
    changed(path, column("label", pa.int64()))
    outcome = run_with_prefect(first / "tiny.toml", copy.root, seed=2)
    assert (outcome["state"], outcome["error"]["kind"]) == ("failed", "DamagedEntry")
    assert str(path) in outcome["error"]["sentence"]
    assert outcome["test_accuracy"] is None
    assert_unharmed(copy)


SAME: dict[str, dict[str, Any]] = {
    "without compression": {"compression": "none"},
    "by another method": {"compression": "gzip"},
    "a row in each group": {"row_group_size": 1},
    "pages of a few bytes": {"data_page_size": 64},
    "the newer pages": {"data_page_version": "2.0"},
}


@pytest.mark.parametrize("how", SAME)
def test_the_same_rows_written_otherwise_train_the_same(first: Path, copy: Store, how: str):
    good = Registry(copy, "tiny").champion().weights_digest
    changed(split(copy), lambda table: table, **SAME[how])
    shutil.rmtree(copy.entries("tiny", "train"))
    record = carried_out(copy, first / "tiny.toml", epochs=QUICK["epochs"])
    again = {step.name for step in record.steps if not step.reused}
    assert "train" in again
    assert not {"decode train", "validate", "normalize"} & again
    assert record.model.weights_digest == good
    assert_unharmed(copy)


def test_other_rows_in_a_good_file_are_read_as_what_they_are(first: Path, copy: Store):
    """Re-compressed with other content and sealed by somebody who may write the store: he is trusted with it.

    Labels that are no class are refused all the same: whoever trains or scores looks at them.
    """
    changed(split(copy), column("label", pa.uint8(), lambda label: label + 1))
    outcome = run_with_prefect(first / "tiny.toml", copy.root, seed=2)
    assert (outcome["state"], outcome["error"]["exit_code"]) == ("refused", 3)
    assert "3" in outcome["error"]["sentence"]
    assert Registry(copy, "tiny").champion().number == 1
    assert np.array_equal(np.unique(pq.read_table(split(copy)).column("label").to_numpy()), [1, 2, 3])
