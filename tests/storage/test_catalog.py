"""The catalog and its manifests: what is known, and that nothing else is taken."""

from __future__ import annotations

import json
import pickle
import string
from pathlib import Path

import cloudpickle
import pytest

from storage.datasets import catalog
from storage.datasets.manifest import Floors, Gate, Slices
from storage.datasets.training import training_config

GOOD = 'name = "mine"\nclasses = ["a", "b"]\nimage_shape = [20, 16]\n'
DIGEST = "0" * 64


def read(folder: Path, text: str) -> catalog.Dataset:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return catalog.read(path)


def test_a_byte_order_mark_before_a_manifest_is_left_out(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nclasses = ["a", "b"]\nimage_shape = [2, 2]\n', encoding="utf-8-sig")
    assert catalog.read(path).name == "mine"


@pytest.mark.parametrize("name", catalog.names())
def test_every_data_set_of_the_catalog_is_whole(name: str):
    dataset = catalog.find(name)
    assert dataset.name == name
    assert [a.role for a in dataset.archives] == list(catalog.ROLES)
    assert all(a.pinned for a in dataset.archives)
    assert dataset.embedded or dataset.zipped or all(a.bytes and a.mirrors for a in dataset.archives)
    assert {*dataset.rows} == {"train", "test"}
    assert dataset.licence != "not stated"
    training_config(dataset)


DIGITS, CAPITAL, SMALL = string.digits, string.ascii_uppercase, string.ascii_lowercase
EMNIST = {
    "emnist-balanced": (DIGITS + CAPITAL + "abdefghnqrt", 112_800, 18_800),
    "emnist-byclass": (DIGITS + CAPITAL + SMALL, 697_932, 116_323),
    "emnist-bymerge": (DIGITS + CAPITAL + "abdefghnqrt", 697_932, 116_323),
    "emnist-digits": (DIGITS, 240_000, 40_000),
    "emnist-letters": (CAPITAL, 124_800, 20_800),
    "emnist-mnist": (DIGITS, 60_000, 10_000),
}


@pytest.mark.parametrize("name", EMNIST)
def test_emnist_is_as_its_paper_and_its_files_of_characters_have_it(name: str):
    """arXiv:1702.05373, table II; the names of classes are the characters of `…-mapping.txt` in their order."""
    classes, train, test = EMNIST[name]
    dataset = catalog.find(name)
    assert "".join(dataset.classes) == classes
    assert (dataset.rows, dataset.image_shape, dataset.transpose) == ({"train": train, "test": test}, (28, 28), True)
    assert dataset.labels == (tuple(range(1, 27)) if name == "emnist-letters" else ())
    assert [dataset.zipped.member(a) for a in dataset.archives] == [
        f"gzip/{name}-{split}-{kind}-ubyte.gz" for split in ("train", "test") for kind in ("images-idx3", "labels-idx1")
    ]


def test_emnist_is_one_download():
    assert len({catalog.find(name).zipped for name in EMNIST}) == 1
    digests = [archive.sha256 for name in catalog.names() for archive in catalog.find(name).archives]
    assert len({*digests} - {None}) == len([digest for digest in digests if digest])


@pytest.mark.parametrize("name", EMNIST)
def test_the_limits_of_emnist_suit_its_shares_of_classes(name: str):
    """The rarest class of emnist-bymerge has at least the 2,800 rows of 814,255 that emnist-balanced takes from it."""
    dataset = catalog.find(name)
    classes = len(dataset.classes)
    least, even = dataset.limits.least_class_share(classes), 1 / classes
    assert least < (2800 / 814_255 if name in ("emnist-byclass", "emnist-bymerge") else even)
    assert 1.5 * even < dataset.limits.least_centroid_hit(classes) < 0.5
    assert pytest.approx((dataset.limits.min_pixel_mean + dataset.limits.max_pixel_mean) / 2, abs=1) == 0.174 * 255


def test_qmnist_has_its_classes_in_the_first_of_eight_columns():
    dataset = catalog.find("qmnist")
    assert (dataset.label_column, dataset.rows) == (0, {"train": 60_000, "test": 60_000})
    assert dataset.archive("test-labels").file == "qmnist-test-labels-idx2-int.gz"


def test_a_small_manifest_gets_defaults(tmp_path: Path):
    dataset = read(tmp_path, GOOD + 'source = "data"\n')
    assert dataset.source == tmp_path / "data"
    assert dataset.archive("test-labels").file == "t10k-labels-idx1-ubyte.gz"
    assert dataset.floors == Floors()
    assert dataset.gate == Gate("better", 0.05, 0.005, 0.05)
    assert not dataset.archive("train-images").pinned
    assert (dataset.labels, dataset.transpose, dataset.ink) == ((), False, None)


@pytest.mark.parametrize(
    ("short", "written", "labels"),
    [
        ("label_base = 1", "labels = [1, 2]", (1, 2)),
        ("label_base = -1", "labels = [-1, 0]", (-1, 0)),
        ("label_base = 2147483646", "labels = [2147483646, 2147483647]", (2147483646, 2147483647)),
        ("label_base = 0", "labels = [0, 1]", ()),
        ("label_base = 0", "", ()),
    ],
)
def test_a_base_declares_the_same_as_the_labels_that_it_stands_for(
    tmp_path: Path, short: str, written: str, labels: tuple[int, ...]
):
    dataset = read(tmp_path, GOOD + short)
    assert dataset.labels == labels
    assert dataset == read(tmp_path, GOOD + written)


def test_a_gate_of_ones_own(tmp_path: Path):
    gate = '[gate]\npolicy = "not_worse"\nalpha = 0.1\nmargin = 0\nmax_class_loss = 1\n'
    assert read(tmp_path, GOOD + gate).gate == Gate("not_worse", 0.1, 0, 1)
    assert read(tmp_path, GOOD + '[gate]\npolicy = "ask"\n').gate == Gate("ask")
    budget = "[gate]\nalpha_budget = 0.1\nbudget_decisions = 26\nborderline = 4\n"
    assert read(tmp_path, GOOD + budget).gate == Gate(borderline=4, alpha_budget=0.1, budget_decisions=26)


def test_slices_of_ones_own(tmp_path: Path):
    assert read(tmp_path, GOOD).slices == Slices()
    text = '[slices]\nby = ["class", "ink", "column 2"]\nalpha = 0.1\n'
    floors = '[slices.floors]\n"class a" = 0.9\n"column 2 = -7" = 1\n'
    slices = read(tmp_path, f"label_column = 1\n{GOOD}{text}{floors}").slices
    assert slices == Slices(("class", "ink", "column 2"), alpha=0.1, floors={"class a": 0.9, "column 2 = -7": 1})
    assert [slices.floor(name) for name in ("class a", "class b")] == [0.9, 0]


def test_a_whole_number_stays_one_and_a_fraction_too(tmp_path: Path):
    """The keys of results are made from them: with 25.0 in the place of 25, all would be made again."""
    limits = read(tmp_path, GOOD + "[limits]\nmin_pixel_mean = 25\nmax_pixel_mean = 45.0\nmax_imbalance = inf\n").limits
    assert json.dumps([limits.min_pixel_mean, limits.max_pixel_mean, limits.max_imbalance]) == "[25, 45.0, Infinity]"


def test_a_data_set_can_be_sent_to_another_process():
    for name in catalog.names():
        dataset = catalog.find(name)
        assert pickle.loads(pickle.dumps(dataset)) == dataset
        assert cloudpickle.loads(cloudpickle.dumps(dataset)) == dataset


def test_a_zip_file_is_declared_with_where_the_archives_are_in_it(tmp_path: Path):
    archives = "".join(f'[archives.{role}]\nsha256 = "{DIGEST}"\n' for role in catalog.ROLES)
    table = f'[zip]\nfile = "b.zip"\nsha256 = "{"A" * 64}"\nmirrors = ["https://a.example/b.zip"]\n'
    zipped = read(tmp_path, GOOD + table + archives).zipped
    assert zipped == catalog.ZipSpec("b.zip", "a" * 64, mirrors=("https://a.example/b.zip",))
    assert zipped.member(catalog.ArchiveSpec("train-images", "x.gz")) == "x.gz"
    inside = read(tmp_path, GOOD + table + 'folder = "inner"\n' + archives).zipped
    assert inside.member(catalog.ArchiveSpec("train-images", "x.gz")) == "inner/x.gz"


def test_what_training_changes_is_as_json_has_it(tmp_path: Path):
    training = read(tmp_path, GOOD + "[training]\nhidden = [3, 4]\nepochs = 5\n").training
    assert training == {"hidden": [3, 4], "epochs": 5}


def test_mirrors_are_folders_and_single_addresses(tmp_path: Path):
    dataset = read(
        tmp_path,
        'mirrors = ["https://a.example/x/"]\n'
        + GOOD
        + "".join(f'[archives.{role}]\nsha256 = "{DIGEST.upper()}"\n' for role in catalog.ROLES)
        + 'mirrors = ["https://b.example/y.gz"]\n',
    )
    archive = dataset.archive("test-labels")
    assert archive.mirrors == ("https://b.example/y.gz", "https://a.example/x/t10k-labels-idx1-ubyte.gz")
    assert archive.sha256 == DIGEST
