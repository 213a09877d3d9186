"""Bad settings: each is one sentence that names file and key, before anything is read, fetched or made."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from storage.datasets import catalog
from storage.datasets.training import parse_overrides, training_config
from storage.errors import ConfigError
from tests.support import badfiles
from tests.support.badfiles import assert_says
from tests.support.servers import BIN, clean_environment

GOOD = 'name = "mine"\nclasses = ["a", "b"]\nimage_shape = [20, 16]\n'
TWO = 'classes = ["a", "b"]\nimage_shape = [2, 2]\n'
HUGE = "9" * 5000

MANIFESTS: dict[str, tuple[str, str]] = {
    "nothing": (
        "",
        "name to be a-z, 0-9, - and _, at most 64 characters, starting with a letter or digit; found nothing; add it",
    ),
    "not TOML": ("name = ", "expected a manifest in TOML; found "),
    "a web page": ("<!DOCTYPE html>\n<title>x</title>", "expected a manifest in TOML"),
    "JSON": ('{"name": "mine"}', "expected a manifest in TOML"),
    "a NUL": (GOOD + "\0", "expected a manifest in TOML"),
    "more than can be a manifest": (GOOD + "#" * 2_000_000, "found more than 1,048,576 bytes"),
    "brackets without end": (GOOD + "rows = " + "[" * 100_000, "expected a manifest in TOML"),
    "a number of 5,000 digits": (GOOD + f"label_column = {HUGE}", "expected a manifest in TOML"),
    "a hexadecimal number of 5,000 digits": (GOOD + f"label_column = 0x{HUGE}", "a number of thousands of digits"),
    "no name": (
        TWO,
        "name to be a-z, 0-9, - and _, at most 64 characters, starting with a letter or digit; found nothing",
    ),
    "an unknown key": (GOOD + "surprise = 1", "found surprise; remove it"),
    "a key over two lines": (GOOD + '"a\\nb" = 1', "found a·b; remove it"),
    "a key of 10,000 characters": (GOOD + "x" * 10_000 + " = 1", "xxx…; remove it"),
    "an unknown archive": (GOOD + "[archives.dev-images]", "found archives.dev-images"),
    "an unknown key of an archive": (GOOD + '[archives.train-images]\nmd5 = "x"', "found archives.train-images.md5"),
    "an unknown limit": (GOOD + "[limits]\nmax_fun = 1", "found limits.max_fun"),
    "a key twice": (GOOD + 'name = "again"', "expected a manifest in TOML; found Cannot overwrite"),
    "a table that is a number": (GOOD + "limits = 3", "limits to be a table; found 3"),
    "one class": ('name = "m"\nclasses = ["a"]\nimage_shape = [2, 2]', "2 to 256 different names"),
    "257 classes": (f'name = "m"\nclasses = {[str(n) for n in range(257)]}\nimage_shape = [2, 2]', "2 to 256"),
    "a class twice": ('name = "m"\nclasses = ["a", "a"]\nimage_shape = [2, 2]', "different names"),
    "a class with a control character": ('name = "m"\nclasses = ["a", "b\\u0000"]\nimage_shape = [2, 2]', "printable"),
    "classes that are numbers": ('name = "m"\nclasses = [0, 1]\nimage_shape = [2, 2]', "printable texts"),
    "a shape of one": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [2]', "height, width"),
    "a shape of zero": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [0, 2]', "height, width"),
    "a shape of truth": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [true, 2]', "height, width"),
    "a shape of 10,000": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [10000, 2]', "each from 1 to 4,096"),
    "a digest too short": (GOOD + '[archives.train-images]\nsha256 = "abc"', "64 hexadecimal digits"),
    "an MD5": (GOOD + f'[archives.train-images]\nsha256 = "{"d4" * 16}"', "64 hexadecimal digits"),
    "a digest of other letters": (GOOD + f'[archives.train-images]\nsha256 = "{"g" * 64}"', "64 hexadecimal digits"),
    "a negative size": (GOOD + "[archives.train-images]\nbytes = -1", "bytes to be a whole number from 1 to"),
    "a size of 40 digits": (
        GOOD + f"[archives.train-images]\nbytes = {'9' * 40}",
        "a whole number from 1 to 1,099,511,627,776",
    ),
    "a payload of 40 digits": (GOOD + f"[archives.test-labels]\npayload_bytes = {'9' * 40}", "payload_bytes to be a"),
    "rows of 40 digits": (GOOD + f"[rows]\ntrain = {'9' * 40}", "rows.train to be a whole number from 1 to 4,294,"),
    "a path as file": (GOOD + '[archives.train-images]\nfile = "../x.gz"', "a file name without a folder"),
    "a hidden file": (GOOD + '[archives.train-images]\nfile = ".x.gz"', "a file name without a folder"),
    "a source with a NUL": (GOOD + 'source = "a\\u0000"', "source to be a folder"),
    "an ftp mirror": ('mirrors = ["ftp://a.example/"]\n' + GOOD, "https:// or http://"),
    "a mirror with a password": (
        'mirrors = ["me:secret@a.example/"]\n' + GOOD,
        "https:// or http:// addresses; found another value; correct it",
    ),
    "a mirror that is a table": ('mirrors = [{url = "https://me:secret@a.example/"}]\n' + GOOD, "found another value;"),
    "a mirror that is a number": (f"mirrors = [0x{HUGE}]\n" + GOOD, "addresses; found another value; "),
    "a mirror that is no list": ('mirrors = "https://me:secret@a.example/"\n' + GOOD, "addresses; found https:…; "),
    "a mirror of an archive over two lines": (
        GOOD + '[archives.train-images]\nmirrors = ["https://a.example/\\nx"]',
        "archives.train-images.mirrors to be a list of https:// or http:// addresses; found https:…; ",
    ),
    "a mirror without digests": ('mirrors = ["https://a.example/"]\n' + GOOD, "idxflow manifest FOLDER"),
    "a share above one": (GOOD + "[limits]\nmax_leaked = 2", "a number from 0 to 1"),
    "a share that is no number": (GOOD + "[limits]\nmax_leaked = nan", "a number from 0 to 1"),
    "a pixel above 255": (GOOD + "[limits]\nmin_pixel_max = 256", "a number from 0 to 255"),
    "an unknown policy": (GOOD + '[gate]\npolicy = "best"', "better, not_worse, ask; found 'best'"),
    "a policy of no kind": (GOOD + "[gate]\npolicy = []", "gate.policy to be one of"),
    "alpha 0": (GOOD + "[gate]\nalpha = 0", "gate.alpha to be a number above 0 and below 0.5; found 0"),
    "alpha one half": (GOOD + "[gate]\nalpha = 0.5", "above 0 and below 0.5"),
    "alpha no number": (GOOD + "[gate]\nalpha = nan", "above 0 and below 0.5"),
    "alpha as text": (GOOD + '[gate]\nalpha = "0.05"', "gate.alpha to be a number"),
    "a margin of truth": (GOOD + "[gate]\nmargin = true", "gate.margin to be a number"),
    "a margin in points": (GOOD + "[gate]\nmargin = 5", "gate.margin to be a number from 0 to 1"),
    "a negative loss": (GOOD + "[gate]\nmax_class_loss = -0.1", "gate.max_class_loss to be a number from 0 to 1"),
    "an unknown key of the gate": (GOOD + "[gate]\nbeta = 0.1", "found gate.beta"),
    "a misspelt key": ('nmae = "mine"\n' + TWO, "found nmae (did you mean name?); remove it or correct its spelling"),
    "a misspelt limit": (GOOD + "[limits]\nmax_blanks = 1", "found limits.max_blanks (did you mean max_blank?); "),
    "no epochs": (GOOD + "[training]\nepochs = 0", "training.epochs to be a whole number from 1 to 10,000; found 0; "),
    "a misspelt parameter": (GOOD + "[training]\nepoch = 1", "found training.epoch (did you mean epochs?); "),
    "memory without a unit": (
        GOOD + "[training]\nmemory = 5",
        "expected memory to be a size such as 500MB",
    ),
    "patience for nothing": (
        GOOD + "[training]\npatience = 2\nvalidation_fraction = 0",
        "expected held-out rows, because patience needs them",
    ),
    "rows as text": (GOOD + '[rows]\ntrain = "many"', "rows.train to be a whole number from 1"),
    "rows of another split": (GOOD + "[rows]\ndev = 1", "found rows.dev"),
    "column -1": (GOOD + "label_column = -1", "label_column to be a whole number from 0 to 1,023; found -1"),
    "one label too few": (
        GOOD + "labels = [1]",
        "labels to be a list of 2 different 32-bit integers, one per class; found 1;",
    ),
    "the same label twice": (
        GOOD + "labels = [1, 1]",
        "labels to be a list of different 32-bit integers, one per class; ",
    ),
    "a label of 33 bits": (
        GOOD + "labels = [0, 4294967296]",
        "labels to be a list of different 32-bit integers, one per class; ",
    ),
    "a label that is a text": (
        GOOD + 'labels = [0, "1"]',
        "labels to be a list of different 32-bit integers, one per class; ",
    ),
    "labels that are a number": (
        GOOD + "labels = 1",
        "labels to be a list of different 32-bit integers, one per class; found 1",
    ),
    "a column of truth": (
        GOOD + "label_column = true",
        "label_column to be a whole number from 0 to 1,023; found True",
    ),
}


@pytest.mark.parametrize(("text", "said"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_wrong_manifest_is_refused_by_file_and_key(tmp_path: Path, text: str, said: str):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        catalog.read(path)
    assert_says(caught.value, f"{path}: expected ", said)
    assert "secret" not in str(caught.value)


NAMES = ["../../etc", "a/b", ".", "", "x" * 65, "x" * 300, "CON", "a\\u0000", "a\\nb", "\\u202Ea", "Mine", "-a", "a.b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_can_never_leave_the_store(tmp_path: Path, name: str):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('"mine"', f'"{name}"'))
    with pytest.raises(ConfigError) as caught:
        catalog.read(path)
    assert_says(caught.value, f"{path}: expected name to be a-z, 0-9")


@pytest.mark.parametrize("made", ["no file", "a folder", "bytes that are no text", "no user"])
def test_a_manifest_that_cannot_be_read_is_said(tmp_path: Path, made: str):
    path = tmp_path / "mine.toml"
    if made == "a folder":
        path.mkdir()
    elif made == "bytes that are no text":
        path.write_bytes(b'name = "\xff\xfe"')
    elif made == "no user":
        path = Path("~nobody-of-that-name/mine.toml")
    with pytest.raises(ConfigError) as caught:
        catalog.read(path)
    assert_says(caught.value, "mine.toml: expected a manifest in TOML")


def test_a_manifest_that_is_far_too_large_is_not_read_to_its_end(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.touch()
    # Without blocks on the disk, and more than there is memory.
    os.truncate(path, 1 << 40)
    with pytest.raises(ConfigError) as caught:
        catalog.read(path)
    assert_says(caught.value, "mine.toml: expected a manifest in TOML", "more than 1,048,576 bytes")


def test_other_data_may_not_take_a_name_of_the_catalog(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('"mine"', '"mnist"'))
    with pytest.raises(ConfigError) as caught:
        catalog.read(path)
    assert_says(caught.value, f"{path}: expected name to be none of the catalog's", "choose another name")


def test_the_data_of_the_catalog_may_be_held_to_other_limits(tmp_path: Path):
    path = tmp_path / "mnist.toml"
    text = (catalog.CATALOG / "mnist.toml").read_text(encoding="utf-8")
    path.write_text(text.replace("max_imbalance = 1.5", "max_imbalance = 3"), encoding="utf-8")
    assert catalog.read(path).limits.max_imbalance == 3


def test_an_unknown_data_set_is_answered_with_those_there_are():
    with pytest.raises(ConfigError) as caught:
        catalog.find("imagenet")
    assert_says(caught.value, "digits, fashion-mnist, kmnist, mnist", "found 'imagenet'", "--dataset-file")


PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "no epochs": ({"epochs": 0}, "expected epochs to be a whole number from 1 to 10,000; found 0; "),
    "-1 epochs": ({"epochs": -1}, "expected epochs to be a whole number from 1 to 10,000; found -1; "),
    "a billion epochs": ({"epochs": 10**9}, "from 1 to 10,000; found 1000000000; "),
    "a batch of 0": (
        {"batch_size": 0},
        "batch_size to be a whole number from 1 to 65,536; found 0; ",
    ),
    "a rate too large": ({"learning_rate": 11}, "learning_rate to be a number above 0 and at most 10; found 11; "),
    "a rate of 0": (
        {"learning_rate": 0},
        "a number above 0 and at most 10; found 0; ",
    ),
    "a rate that is no number": (
        {"learning_rate": float("nan")},
        "a number above 0 and at most 10; found nan",
    ),
    "momentum 1": ({"momentum": 1}, "expected momentum to be a number of at least 0 and below 1; found 1; "),
    "an infinite decay": (
        {"weight_decay": float("inf")},
        "a number from 0 to 1; found inf; ",
    ),
    "true epochs": (
        {"epochs": True},
        "expected epochs to be a whole number from 1 to 10,000; found True; ",
    ),
    "a true rate": ({"learning_rate": True}, "a number above 0 and at most 10; found True; "),
    "true patience": ({"patience": True}, "expected patience to be a whole number from 1 to 10,000, or null; "),
    "a true layer": ({"hidden": [True]}, "each from 1 to 65,536; found [True]; "),
    "a batch in words": ({"batch_size": "many"}, "expected batch_size to be a whole number from "),
    "half a row": ({"batch_size": 1.5}, "expected batch_size to be a whole number from "),
    "an empty layer": ({"hidden": [50, 0]}, "whole numbers, each from 1 to 65,536; found [50, 0]; "),
    "too many layers": ({"hidden": [1] * 17}, "expected hidden to be a list of at most 16 whole numbers, "),
    "no activation": ({"activation": "tan"}, "found 'tan' (did you mean tanh?); "),
    "all rows held out": ({"validation_fraction": 1}, "to be a number from 0 to 0.9; found 1; "),
    "too large a layer": ({"hidden": [65_537]}, "each from 1 to 65,536; found [65537]; "),
    "more rows held out than there are": ({"validation_fraction": 1.5}, "found 1.5; "),
    "a seed too large": ({"seed": 2**32}, "from 0 to 4,294,967,295; found 4294967296; "),
    "a seed below 0": ({"seed": -1}, "seed to be a whole number from 0 to 4,294,967,295; found -1; "),
    "an unknown parameter": ({"epoch": 5}, "; found epoch (did you mean epochs?); remove it or correct its spelling"),
    "patience for nothing": ({"patience": 2, "validation_fraction": 0}, "expected held-out rows, because patience"),
    "10 MB of text": ({"activation": "x" * 10_000_000}, "xxx…; correct it"),
    "10 MB of numbers": ({"hidden": [1] * 5_000_000}, "hidden to be a list of at most 16 whole numbers"),
    "a name of 10 MB": ({"x" * 10_000_000: 1}, "expected one of hidden, activation,"),
    "a name over two lines": ({"a\nb": 1}, "found a·b; remove it or correct its spelling"),
}


@pytest.mark.parametrize(("overrides", "said"), PARAMETERS.values(), ids=PARAMETERS.keys())
def test_a_wrong_parameter_is_refused_in_one_short_sentence(overrides: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        training_config(catalog.find("mnist"), "default", overrides)
    assert_says(caught.value, "training parameters: expected ", said)


@pytest.mark.parametrize("text", ["epochs", "=5", " =5", "", "x" * 10_000_000, "a\nb"])
def test_an_override_without_name_or_value_is_refused(text: str):
    with pytest.raises(ConfigError) as caught:
        parse_overrides([text])
    assert_says(caught.value, "expected --set NAME=VALUE; found ")


def test_an_override_that_is_nested_without_end_is_a_text_and_refused_as_that():
    with pytest.raises(ConfigError) as caught:
        training_config(catalog.find("mnist"), "default", parse_overrides(["hidden=" + "[" * 100_000]))
    assert_says(caught.value, "expected hidden to be ", "[[[…; correct it")


def test_an_unknown_profile_is_answered_with_those_there_are():
    with pytest.raises(ConfigError) as caught:
        training_config(catalog.find("mnist"), "x" * 10_000)  # type: ignore[arg-type]
    assert_says(caught.value, "expected a profile of default, tutorial, fast; found 'xxx")


@pytest.mark.parametrize(
    "arguments",
    [["run", "../../etc"], ["run", "--set", "epochs=0"], ["validate", "--dataset-file", "mine.toml"]],
    ids=["a data set", "a parameter", "a manifest"],
)
def test_the_command_says_it_with_2_and_makes_no_store(tmp_path: Path, arguments: list[str]):
    badfiles.write(tmp_path).manifest.rename(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text("surprise = 1")
    there = set(tmp_path.rglob("*"))
    done = subprocess.run(
        [str(BIN / "idxflow"), *arguments, "--store", str(tmp_path / "new")],
        cwd=tmp_path,
        env=clean_environment(tmp_path, first_start=True, TMPDIR="/nowhere", KERAS_HOME="/dev/null/keras"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert_says(done.stderr.removesuffix("\n"), "idxflow: ")
    assert set(tmp_path.rglob("*")) == there
