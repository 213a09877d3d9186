"""`idxflow dataset add --append`: daily data grows a data set, all of it or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from flows.commands.cli import run_command
from storage.datasets import catalog
from storage.files import locked
from storage.formats import idx
from tests.support.sources import HEADER, rows, table

ALL = [*rows("train"), *rows("test")]
FIRST, SECOND = ALL[:45], ALL[45:]
HALF = ("--test-fraction", "0.3")


@pytest.fixture
def mine(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of a data set of 45 images, and beside the source a table of 30 more."""
    add(capsys, str(table(tmp_path / "first.csv", FIRST, HEADER)), *HALF)
    table(tmp_path / "second.csv", SECOND, HEADER)
    return here / "mine"


def add(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    code = run_command(["dataset", "add", "mine", *words, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 3) -> str:
    assert run_command(["dataset", "add", "mine", *words]) == code
    error = capsys.readouterr().err.strip()
    return error.splitlines()[-1].removeprefix("idxflow: ")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def images(folder: Path, role: str) -> np.ndarray:
    return np.concatenate(
        [idx.read(folder / spec.file) for spec in catalog.read(folder / "mine.toml").archives_of(role)]
    )


def test_images_are_one_more_archive_of_each_role(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(mine)
    values = add(capsys, str(tmp_path / "second.csv"), *HALF, "--append", "--date", "2026-11-30")
    assert (sum(values["rows"].values()), values["known"], values["date"]) == (30, 0, "2026-11-30")
    assert values["archives"] == {"train": 2, "test": 2}
    dataset = catalog.read(mine / "mine.toml")
    assert [spec.file for spec in dataset.archives_of("train-images")] == [
        "train-images-idx3-ubyte.gz",
        "train-images-001-idx3-ubyte.gz",
    ]
    assert [str(spec.date) for spec in dataset.archives_of("test-images")] == ["None", "2026-11-30"]
    assert dataset.archives_of("test-labels")[1].file == "t10k-labels-001-idx1-ubyte.gz"
    pixels = np.concatenate([images(mine, "train-images"), images(mine, "test-images")])
    expected = np.array([row[1:] for row in ALL], np.uint8)
    assert sorted(image.tobytes() for image in pixels) == sorted(image.tobytes() for image in expected)
    # What was there is as it was, but for the form of the tables in the manifest.
    assert {name: data for name, data in contents(mine).items() if name in before and name != "mine.toml"} == {
        name: data for name, data in before.items() if name != "mine.toml"
    }
    assert (mine / "mine-001.json").is_file()
    assert sorted(path.name for path in mine.parent.iterdir()) == ["mine"]


def test_what_its_owner_wrote_into_the_manifest_stays(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    manifest = mine / "mine.toml"
    text = "# Mine.\n" + manifest.read_text() + "[floors]\naccuracy = 0.25 # low\n"
    manifest.write_text(text)
    add(capsys, str(tmp_path / "second.csv"), *HALF, "--append")
    grown = manifest.read_text()
    assert grown.startswith("# Mine.\n")
    assert "accuracy = 0.25 # low\n" in grown
    before, after = tomllib.loads(text), tomllib.loads(grown)
    assert {key: value for key, value in after.items() if key != "archives"} == {
        key: value for key, value in before.items() if key != "archives"
    }
    assert catalog.read(manifest).floors.accuracy == 0.25


def test_without_a_share_for_tests_all_images_are_for_training(mine: Path, tmp_path: Path, capsys):
    values = add(capsys, str(tmp_path / "second.csv"), "--append")
    assert values["rows"] == {"train": 30, "test": 0}
    assert values["archives"] == {"train": 2, "test": 1}


@pytest.mark.remedies("tasks.adding.append:_check_new")
def test_the_same_images_a_second_time_are_refused(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = (str(tmp_path / "second.csv"), *HALF, "--append")
    add(capsys, *words, "--date", "2026-11-29")
    before = contents(mine)
    error = refused(capsys, *words)
    assert error == (
        f"{tmp_path / 'second.csv'}: expected images that are new to mine; found those of "
        "train-images-001-idx3-ubyte.gz, which were appended before, of 2026-11-29; give others"
    )
    assert contents(mine) == before
    assert add(capsys, str(table(tmp_path / "third.csv", SECOND[:9], HEADER)), "--append")["known"] == 9


def test_an_image_that_is_there_stays_on_its_side_and_is_counted(mine: Path, tmp_path: Path, capsys):
    tests = {image.tobytes() for image in images(mine, "test-images")}
    values = add(capsys, str(table(tmp_path / "more.csv", [*FIRST, *SECOND], HEADER)), *HALF, "--append")
    assert values["known"] == 45
    assert values["remarks"][0] == (
        "45 of 75 images are already in mine; they stay on the side where they were: the checks of a run report "
        "duplicates"
    )
    train = {image.tobytes() for image in images(mine, "train-images")}
    assert not train & {image.tobytes() for image in images(mine, "test-images")}
    assert tests <= {image.tobytes() for image in images(mine, "test-images")}


@pytest.mark.remedies("tasks.adding.append:_labels")
def test_a_new_class_is_refused_with_what_to_do(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(mine)
    odd = [[7, *row[1:]] for row in SECOND[:2]]
    source = table(tmp_path / "odd.csv", [*SECOND, *odd], HEADER)
    error = refused(capsys, str(source), "--append")
    assert error == (
        f"{source}: expected images of the 3 classes of mine; found 2 images of '7', which is none of them; leave them "
        "out, or make a data set with this class of all images: idxflow dataset add NEW FROM"
    )
    assert contents(mine) == before
    assert add(capsys, str(tmp_path / "second.csv"), "--append")["rows"]["train"] == 30


def test_a_source_may_have_fewer_classes(mine: Path, tmp_path: Path, capsys):
    ones = [row for row in SECOND if str(row[0]) == "1"]
    add(capsys, str(table(tmp_path / "ones.csv", ones, HEADER)), "--append")
    assert set(images(mine, "train-labels")[-len(ones) :]) == {1}


def test_renamed_classes_are_found_by_their_labels_in_the_source(here: Path, tmp_path: Path, capsys):
    add(capsys, str(table(tmp_path / "first.csv", FIRST, HEADER)), *HALF, "--classes", "low,mid,high")
    add(capsys, str(table(tmp_path / "second.csv", SECOND, HEADER)), "--append")
    labels = images(here / "mine", "train-labels")[-len(SECOND) :]
    np.testing.assert_array_equal(labels, [int(row[0]) for row in SECOND])


@pytest.mark.remedies("tasks.adding.append:_dataset:3")
def test_numbers_that_would_be_wrong_are_not_left_in_the_manifest(mine: Path, tmp_path: Path, capsys):
    manifest = mine / "mine.toml"
    text = manifest.read_text()
    manifest.write_text(f"{text}[rows]\ntrain = 31\n")
    error = refused(capsys, str(tmp_path / "second.csv"), "--append", code=2)
    assert "expected no [rows], because the numbers change; found {'train': 31}; remove it" in error
    manifest.write_text(text)
    add(capsys, str(tmp_path / "second.csv"), "--append")


@pytest.mark.remedies("tasks.adding.append:_digests")
def test_an_archive_that_is_gone_is_missed(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = mine / "train-images-idx3-ubyte.gz"
    file.rename(tmp_path / "away")
    error = refused(capsys, str(tmp_path / "second.csv"), "--append", code=2)
    assert error.startswith(f"expected {file}, which {mine / 'mine.toml'} names; found none; restore it")
    (tmp_path / "away").rename(file)
    add(capsys, str(tmp_path / "second.csv"), "--append")


@pytest.mark.remedies("tasks.adding.append:_check_reads")
def test_archives_in_another_form_are_refused(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    manifest = mine / "mine.toml"
    text = manifest.read_text()
    start = text.index("[archives.train-images]")
    inline = text[:start] + "\n".join(
        f'archives.{spec.role} = {{ file = "{spec.file}" }}' for spec in catalog.read(manifest).archives
    )
    manifest.write_text(inline)
    before = contents(mine)
    error = refused(capsys, str(tmp_path / "second.csv"), "--append", code=2)
    assert (
        "expected a table for each archive, such as [archives.train-images], as `idxflow dataset add` writes" in error
    )
    assert contents(mine) == before
    manifest.write_text(text)
    add(capsys, str(tmp_path / "second.csv"), "--append")


@pytest.mark.remedies("flows.commands.dataset:_check_of_new", "storage.datasets.chosen:day_of")
def test_options_for_a_new_data_set_are_refused(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = (str(tmp_path / "second.csv"), "--append")
    assert "expected no --classes with --append" in refused(capsys, *words, "--classes", "a,b,c", code=2)
    assert "expected a day such as 2026-11-30; found 'today'" in refused(capsys, *words, "--date", "today", code=2)
    add(capsys, *words, "--date", "2026-11-30")


@pytest.mark.remedies("tasks.adding.append:_dataset:4")
def test_archives_that_are_read_otherwise_are_not_appended_to(mine: Path, tmp_path: Path, capsys):
    manifest = mine / "mine.toml"
    text = manifest.read_text()
    manifest.write_text(f"transpose = true\n{text}")
    error = refused(capsys, str(tmp_path / "second.csv"), "--append", code=2)
    assert error.endswith("make a data set of its archives first: idxflow dataset add NEW FOLDER")
    assert run_command(["dataset", "add", "new", "mine", "--json"]) == 0
    capsys.readouterr()
    assert run_command(["dataset", "add", "new", str(tmp_path / "second.csv"), "--append"]) == 0


@pytest.mark.remedies("tasks.adding.add:check_not_split")
def test_a_source_with_a_test_split_is_taken_as_it_is_split(mine: Path, tmp_path: Path, capsys):
    for split in ("train", "test"):
        table(tmp_path / "both" / f"{split}.csv", rows(split), HEADER)
    error = refused(capsys, str(tmp_path / "both"), *HALF, "--append", code=2)
    assert "expected no --test-fraction, because " in error
    values = add(capsys, str(tmp_path / "both"), "--append")
    assert values["rows"] == {"train": 60, "test": 15}
    assert values["remarks"][0].startswith("45 of 75 images are already in mine; they are in both again: ")


@pytest.mark.remedies("tasks.adding.add:refuse")
def test_two_at_once_go_one_after_the_other(mine: Path, tmp_path: Path, capsys):
    second = str(tmp_path / "second.csv")
    with locked(mine / ".mine.lock"):
        error = refused(capsys, second, "--append", code=2)
    assert error.endswith("another `idxflow dataset add` does; wait until it has ended, then repeat this one")
    add(capsys, second, "--append")


def test_an_own_data_set_that_is_asked_for_by_its_name(mine: Path, monkeypatch, capsys):
    for name, remedy in (("mine", "--dataset-file mine/mine.toml"), ("other", "found 'other'")):
        assert run_command(["validate", name, "--store", str(mine.parent / "store")]) == 2
        assert remedy in capsys.readouterr().err


def test_an_append_that_was_cut_off_left_nothing_that_counts(mine: Path, tmp_path: Path, capsys, monkeypatch):
    from tasks.adding import append as module

    before = catalog.read(mine / "mine.toml").archives
    monkeypatch.setattr(module, "write_bytes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    run_command(["dataset", "add", "mine", str(tmp_path / "second.csv"), "--append"])
    capsys.readouterr()
    assert catalog.read(mine / "mine.toml").archives == before
    monkeypatch.undo()
    monkeypatch.chdir(mine.parent)
    add(capsys, str(tmp_path / "second.csv"), "--append")
    assert len(catalog.read(mine / "mine.toml").archives) == len(before) + 2


@pytest.mark.remedies("tasks.adding.append:_dataset:2")
def test_the_data_set_is_one_that_this_command_has_made(mine: Path, tmp_path: Path, capsys):
    shutil.copytree(mine, mine.parent / "other")
    words = (str(tmp_path / "second.csv"), "--append")
    (mine.parent / "other" / "mine.toml").write_text(
        (mine / "mine.toml").read_text().replace('source = "."', 'source = "../mine"')
    )
    error = refused(capsys, *words, "--as", "other", code=2)
    assert "name the data set and its folder: idxflow dataset add NAME FROM --append --as FOLDER" in error
    add(capsys, *words, "--as", "mine")


@pytest.mark.remedies("tasks.adding.append:_dataset")
def test_the_first_images_are_added_without_append(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = (str(table(tmp_path / "first.csv", FIRST, HEADER)), *HALF)
    error = refused(capsys, *words, "--append", code=2)
    assert "found none; name its folder with --as, or make it first: without --append" in error
    add(capsys, *words)
    assert catalog.read(here / "mine" / "mine.toml").name == "mine"


def test_a_day_in_the_future_is_remarked_on(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = add(capsys, str(tmp_path / "second.csv"), *HALF, "--append", "--date", "2999-01-01")
    assert any("2999-01-01 is in the future" in remark for remark in values["remarks"])


def test_nothing_is_written_beside_the_folder_of_the_data_set(mine: Path, tmp_path: Path, capsys, monkeypatch):
    # Another file system may be mounted there, from which files cannot be renamed.
    replaced, rename = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (replaced.append(Path(old)), rename(old, new)))
    add(capsys, str(tmp_path / "second.csv"), *HALF, "--append")
    assert len(replaced) >= 4
    assert all(path.is_relative_to(mine) for path in map(Path.absolute, replaced))
    assert not [path for path in mine.iterdir() if path.name.startswith(".")]
