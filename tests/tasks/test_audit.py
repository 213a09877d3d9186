"""The audit: finds labels that were changed on purpose, leaves out what cannot be judged, and is the same again."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from storage.datasets import catalog
from storage.errors import DamagedEntry
from storage.records import Audit, Split
from storage.store import Store
from tasks.audit import audit
from tasks.auditing import confident, folds
from tasks.auditing.cells import grid
from tasks.auditing.cross_validation import Judgement
from tasks.auditing.tables import NearDuplicates, Suspects
from tasks.ui import progress
from tasks.ui.progress import Progress
from tests.conftest import TinyFactory
from tests.support.splits import handwritten, split_of

DIGITS = catalog.find("digits")
CHANGED = 14


def changed(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images of digits, their labels, of which 14 are wrong, and the rows of these."""
    images, labels = (values[:1437] for values in handwritten())
    random = np.random.default_rng(seed)
    rows = random.choice(len(labels), CHANGED, replace=False)
    labels = labels.copy()
    labels[rows] = (labels[rows] + random.integers(1, 10, CHANGED)) % 10
    return images, labels, rows


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Split, Split]:
    folder = tmp_path_factory.mktemp("splits")
    images, labels, _ = changed()
    others, their_labels = (values[1437:] for values in handwritten())
    return (
        split_of(folder, "train", images, labels, 10, 512),
        split_of(folder, "test", others, their_labels, 10, 512),
    )


@pytest.fixture(scope="module")
def found(splits: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return audit.fn(Store(tmp_path_factory.mktemp("store")), DIGITS, *splits).record


def test_wrong_labels_are_found(found: Audit):
    _, labels, wrong = changed()
    table = Suspects.read(found.suspects)
    assert (found.rows, found.left_out) == (1437, 0)
    assert (len(table), int(table.flagged.sum())) == (found.suspect_rows, found.flagged_rows)
    assert len(set(table.row[:CHANGED]) & set(wrong)) >= 12
    flagged = set(table.row[table.flagged])
    assert len(flagged & set(wrong)) >= 11
    assert len(flagged - set(wrong)) <= 5
    assert (table.label == labels[table.row]).all()
    # What they were before the change.
    true = handwritten()[1][table.row]
    known = np.isin(table.row, wrong) & table.flagged
    assert (table.suggested == true)[known].mean() >= 0.9
    assert (np.diff(table.probability) >= 0).all()
    assert (table.suggested_probability > table.probability).all()


def test_the_same_data_gives_the_same_bytes_also_after_an_interruption(
    found: Audit, splits: tuple[Split, Split], store: Store
):
    shown: dict[str, list[float]] = {}

    def interrupt(how_far: Progress) -> None:
        if how_far.done == 3:
            raise KeyboardInterrupt

    def show(how_far: Progress) -> None:
        shown.setdefault(how_far.name, []).append(how_far.done / (how_far.total or 1))

    with pytest.raises(KeyboardInterrupt), progress.listening(interrupt):
        audit.fn(store, DIGITS, *splits)
    with progress.listening(show):
        first = audit.fn(store, DIGITS, *splits)
    assert not first.step.reused
    assert list(shown) == ["audit labels", "audit images"]
    assert all(shares == sorted(shares) and shares[-1] == 1 for shares in shown.values())
    for name in ("suspects", "near_duplicates"):
        assert getattr(first.record, name).read_bytes() == getattr(found, name).read_bytes()
    assert first.record.digest == found.digest
    assert audit.fn(store, DIGITS, *splits).step.reused


def test_large_images_and_more_rows_than_fit_in_memory(store: Store):
    """They are shrunk to 32 × 32 pixels, and four copies of 400 of them exceed the least budget of 1 MiB."""
    images, labels, wrong = (values[:400] for values in changed())
    large = np.kron(images * 15, np.ones((8, 8), np.uint8))
    train = split_of(store.root, "train", large, labels, 10, 100)
    test = split_of(store.root, "test", large, labels, 10, 100)
    result = audit.fn(store, DIGITS, train, test, memory="10KB").record
    wrong = wrong[wrong < len(images)]
    table = Suspects.read(result.suspects)
    assert len(set(table.row[: len(wrong)]) & set(wrong)) >= len(wrong) - 1
    assert (result.equal_rows, result.near_rows) == (len(images), 0)
    names = sorted(path.name for path in result.entry.folder.iterdir())
    assert names == ["entry.json", "near_duplicates.parquet", "suspects.parquet"]


ODD = {
    "one row": ([0], [1], 3),
    "one class": ([0, 1, 2, 3, 4], [1] * 5, 3),
    "a class with one row": ([*range(20)], [*([0] * 10), *([1] * 9), 2], 3),
    "equal images": ([7] * 12, [0, 1] * 6, 3),
    "labels that are no class": ([*range(12)], [0, 1, 99] * 4, 3),
    "no label is a class": ([*range(4)], [99, 98, 97, 96], 3),
    "256 classes": ([*range(256)] * 2, [*range(256)] * 2, 256),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_data_is_audited_as_far_as_it_can_be(odd: str, tiny: TinyFactory, store: Store):
    seeds, labels, classes = ODD[odd]
    images = np.stack([np.random.default_rng(seed).integers(0, 256, (3, 4), np.uint8) for seed in seeds])
    train = split_of(store.root, "train", images, np.array(labels, np.uint8), classes, 8)
    test = split_of(store.root, "test", images[:1], np.array(labels[:1], np.uint8), classes, 8)
    dataset = tiny(classes=3) if classes == 3 else tiny(classes=classes, shape=(256, 2), train=256, test=256)
    result = audit.fn(store, dataset, train, test).record
    judged = {"one class": 5, "a class with one row": 19, "labels that are no class": 8}.get(odd, 0)
    assert (result.rows, result.left_out) == (judged, len(labels) - judged)
    assert (result.equal_rows, result.near_rows, result.compared_rows) == (1, 0, 1)
    assert len(Suspects.read(result.suspects)) == result.suspect_rows <= judged


def test_equal_images_are_in_one_fold_and_each_class_in_all():
    random = np.random.default_rng(0)
    digests = random.integers(0, 300, 1000)
    labels = (digests % 7).astype(np.uint8)
    fold = folds.divided(labels, digests, 7)
    for digest in range(300):
        assert len(set(fold[digests == digest])) <= 1
    for label in range(7):
        assert set(fold[labels == label]) == set(range(folds.FOLDS))
    images = [len(set(digests[fold == number])) for number in range(folds.FOLDS)]
    assert max(images) - min(images) <= 1
    assert (folds.divided(labels, digests, 5) == -1).tolist() == (labels >= 5).tolist()


def test_confident_learning_is_that_of_the_paper():
    """Equations 1 and 2, row by row, in the order of the paper."""
    random = np.random.default_rng(3)
    classes, rows = 5, 400
    labels = random.integers(0, classes, rows).astype(np.uint8)
    powers = np.exp(random.normal(0, 1.5, (rows, classes)) + 2 * np.eye(classes)[labels])
    probability = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    limits = [probability[labels == label, label].astype(float).mean() for label in range(classes)]
    expected = set()
    for row in range(rows):
        confident_classes = [label for label in range(classes) if probability[row, label] >= limits[label]]
        guess = max(confident_classes, key=lambda label: probability[row, label], default=labels[row])
        if guess != labels[row] and probability[row].argmax() != labels[row]:
            expected.add(row)
    cuts = (slice(0, 150), slice(150, rows))
    judgements: list[Judgement] = [(np.arange(rows)[cut], labels[cut], probability[cut]) for cut in cuts]
    table = confident.suspects(judgements, confident.thresholds(judgements, classes))
    assert set(table.row[table.flagged]) == expected
    assert len(expected) > 20
    assert set(table.row) == set(np.flatnonzero(probability.argmax(axis=1) != labels))


@pytest.mark.parametrize(("shape", "most"), [((9, 7), 4), ((28, 28), 8), ((3, 5), 8), ((1, 1), 8)])
def test_cells_are_means_of_all_pixels(shape: tuple[int, int], most: int):
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    cells = grid(shape, most)
    means = cells.means(images)
    assert means.shape == (5, min(shape[0], most) * min(shape[1], most))
    assert cells.areas.sum() == shape[0] * shape[1]
    np.testing.assert_allclose((means * cells.areas).sum(axis=1), images.sum(axis=(1, 2)))
    if max(shape) <= most:
        assert (means == images.reshape(5, -1)).all()


@pytest.mark.remedies("tasks.auditing.tables:read")
def test_a_table_that_is_none_is_refused_and_made_again(store: Store):
    image = np.eye(8, dtype=np.uint8)[None]
    pair = [split_of(store.root, name, image, np.zeros(1, np.uint8), 10, 1) for name in ("train", "test")]
    file = audit.fn(store, DIGITS, *pair).record.suspects
    file.chmod(0o644)
    table = Suspects(*(np.ones(3, kind) for kind in Suspects.KINDS.values()))
    table.write(file)
    assert Suspects.read(file).flagged.tolist() == [True] * 3
    with pytest.raises(DamagedEntry, match="its columns are row, label, suggested, probability"):
        NearDuplicates.read(file)
    dataclasses.replace(table, probability=np.array([0.5, np.nan, 0.5])).write(file)
    with pytest.raises(DamagedEntry, match="it has a number that is not finite"):
        Suspects.read(file)
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedEntry, match=f"expected a table of an audit; .*; remove {file.parent}, then run again"):
        Suspects.read(file)
    shutil.rmtree(file.parent)
    assert not len(Suspects.read(audit.fn(store, DIGITS, *pair).record.suspects))


def test_tables_without_rows_are_tables(tmp_path: Path):
    for table in (Suspects.none(), NearDuplicates.none()):
        table.write(tmp_path / "table.parquet")
        assert len(type(table).read(tmp_path / "table.parquet")) == 0
