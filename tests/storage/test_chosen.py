"""Which archives a run uses: those that were there on a day, and the newest of them."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.datasets.chosen import chosen, day_of
from storage.errors import ConfigError
from tests.conftest import bars
from tests.support.listed_archives import dated, write_listed

DAYS = ("2026-11-01", "2026-11-03", "2026-11-02", "2026-11-10")
ARRAYS = bars(40, 10, 3, (9, 7))


def made(folder: Path, more: str = "") -> Dataset:
    return dated(write_listed(folder, ARRAYS, (10,) * 4), *DAYS, more=more)


def numbers(dataset: Dataset) -> list[int]:
    """The archives that are used, after checking that each of images has its labels."""
    images, labels = ([spec.number for spec in dataset.archives_of(f"train-{kind}")] for kind in ("images", "labels"))
    assert images == labels
    assert len(dataset.archives_of("test-images")) == len(dataset.archives_of("test-labels")) == 1
    return images


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


@pytest.mark.parametrize(
    ("until", "used"),
    [("2026-11-01", [0]), ("2026-11-02", [0, 2]), ("2026-11-09", [0, 1, 2]), ("2027-01-01", [0, 1, 2, 3])],
)
def test_a_day_has_the_archives_of_that_day_and_of_earlier_ones(tmp_path: Path, until: str, used: list[int]):
    assert numbers(chosen(made(tmp_path), day(until))) == used


@pytest.mark.parametrize(
    ("window", "until", "used"),
    [
        ("last = 2", None, [2, 3]),
        ("last = 9", None, [0, 1, 2, 3]),
        ("last = 2", "2026-11-03", [1, 2]),
        ('last = 1\nunit = "days"', None, [3]),
        ('last = 8\nunit = "days"', None, [1, 3]),
        ('last = 9\nunit = "days"', None, [1, 2, 3]),
        ('last = 2\nunit = "days"', "2026-11-08", [1, 2]),
    ],
)
def test_a_window_has_the_newest_of_them(tmp_path: Path, window: str, until: str | None, used: list[int]):
    dataset = made(tmp_path, f"[window]\n{window}\n")
    assert numbers(chosen(dataset, day(until) if until else None)) == used


def test_what_is_used_is_said_where_it_is_not_all(tmp_path: Path):
    dataset = made(tmp_path, "[window]\nlast = 2\n")
    assert chosen(dataset, day("2026-11-03")).chosen == (
        "2 of 4 archives for training of 2026-11-02 to 2026-11-03, as of 2026-11-03: "
        "train-images-001-idx3-ubyte.gz to train-images-002-idx3-ubyte.gz"
    )
    whole = made(tmp_path)
    assert chosen(whole, day("2027-01-01")) == whole
    assert whole.chosen == ""


def test_declared_rows_are_those_of_all_archives(tmp_path: Path):
    dataset = made(tmp_path, "[rows]\ntrain = 40\ntest = 10\n")
    assert chosen(dataset).rows == {"train": 40, "test": 10}
    assert chosen(dataset, day("2026-11-01")).rows == {"test": 10}


def test_an_archive_without_a_date_has_always_been_there(tmp_path: Path):
    dataset = write_listed(tmp_path, ARRAYS, (10,) * 4)
    assert chosen(dataset, day("1999-01-01")) == dataset


@pytest.mark.remedies("storage.datasets.chosen:_until")
def test_a_day_before_all_data_is_refused(tmp_path: Path):
    dataset = made(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"toml: expected archives of train-images of 2026-10-31 or earlier; found the first of 2026-11-01; ",
    ):
        chosen(dataset, day("2026-10-31"))
    assert numbers(chosen(dataset, day("2026-11-01"))) == [0]


def test_what_is_no_day_is_refused():
    with pytest.raises(ConfigError, match="--as-of: expected a day such as 2026-11-30; found 'yesterday'; correct it"):
        day_of("yesterday", "--as-of")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[window]\nlast = 0\n", "expected window.last to be an integer from 1 to 1,000,000; found 0"),
        ('[window]\nlast = 3\nunit = "weeks"\n', "expected window.unit to be one of archives, days; found 'weeks'"),
        (
            '[window]\nlast = 3\nunit = "days"\n',
            r"expected a date for each archive of train-images, because window counts days; found none for ",
        ),
    ],
)
def test_a_window_that_means_nothing_is_refused(tmp_path: Path, text: str, message: str):
    manifest = write_listed(tmp_path, ARRAYS, (10,) * 4).manifest
    manifest.write_text(manifest.read_text() + text)
    with pytest.raises(ConfigError, match=message):
        catalog.read(manifest)


IMAGES, LABELS = "train-images", "train-labels"


def listed(role: str, *tables: str) -> str:
    return "".join(f"[[archives.{role}]]\n{table}\n" for table in tables)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            listed(IMAGES, 'file = "a"', 'file = "b"'),
            "expected as many archives.train-labels as archives.train-images, in the same order; found 2 archives of "
            "images and 1 of labels; add what is missing",
        ),
        (
            listed(IMAGES, 'file = "a"', 'file = "a"') + listed(LABELS, 'file = "c"', 'file = "d"'),
            "expected archives.train-images.file to be another name for each of its 2 archives; found 'a' twice",
        ),
        (
            listed(IMAGES, 'file = "a"', "bytes = 3") + listed(LABELS, 'file = "c"', 'file = "d"'),
            "expected archives.train-images.file to be another name for each of its 2 archives; found one without",
        ),
        (
            listed(IMAGES, 'file = "a"', 'file = "b"\nsha256 = "x"') + listed(LABELS, 'file = "c"', 'file = "d"'),
            r"expected archives.train-images\[1\].sha256 to be a SHA-256 of 64 hexadecimal digits; found 'x'",
        ),
        (
            listed(IMAGES, 'file = "a"', 'name = "b"'),
            r"expected one of file, .*; found archives.train-images\[1\].name; remove it or correct its spelling",
        ),
        (
            "[archives]\ntrain-images = []\n",
            r"expected archives.train-images to be a table, or a list of at most 20,000 tables; found \[\]; correct it",
        ),
        (
            listed(IMAGES, 'date = "2026-11-30"'),
            r"expected archives.train-images\[0\].date to be a date without quotes, such as 2026-11-30; found '2026",
        ),
        (
            listed(LABELS, "date = 2026-11-30"),
            "expected the date of images in archives.train-images; found one in archives.train-labels; move it there",
        ),
        (
            "embedded = true\n"
            + listed(IMAGES, 'file = "a"', 'file = "b"')
            + listed(LABELS, 'file = "c"', 'file = "d"'),
            "expected one archive of train-images, because embedded data is written as four; found 2",
        ),
        (
            'mirrors = ["https://example.org"]\n[[archives.train-images]]\n',
            "expected archives.train-images.sha256 or archives.train-images.payload_sha256 because it is fetched",
        ),
    ],
)
def test_a_list_of_archives_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "mine.toml"
    path.write_text(f'name = "mine"\nclasses = ["a", "b"]\nimage_shape = [4, 4]\n{text}')
    with pytest.raises(ConfigError, match=message):
        catalog.read(path)


@pytest.mark.remedies("storage.datasets.catalog:check_four")
def test_a_set_of_several_archives_cannot_arrive(tmp_path: Path):
    dataset = made(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"expected one archive for each role, because a set is four files; found 4 of train-images; ",
    ):
        catalog.check_four(dataset, "a set is four files")
    catalog.check_four(write_listed(tmp_path, ARRAYS, (40,)), "a set is four files")
