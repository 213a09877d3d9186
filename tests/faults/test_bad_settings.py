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
from tests.support.badmanifests import GOOD, MANIFESTS
from tests.support.servers import BIN, clean_environment


@pytest.mark.parametrize(("text", "message"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_wrong_manifest_is_refused_by_file_and_key(tmp_path: Path, text: str, message: str):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        catalog.read(path)
    assert_says(caught.value, f"{path}: expected ", message)
    assert "secret" not in str(caught.value)


NAMES = ["../../etc", "a/b", ".", "", "x" * 65, "x" * 300, "CON", "a\\u0000", "a\\nb", "\\u202Ea", "Mine", "-a", "a.b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_can_never_leave_the_store(tmp_path: Path, name: str):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('"mine"', f'"{name}"'))
    with pytest.raises(ConfigError) as caught:
        catalog.read(path)
    assert_says(caught.value, f"{path}: expected name to be a-z, 0-9")


@pytest.mark.parametrize("case", ["no file", "a folder", "bytes that are no text", "no user"])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, case: str):
    path = tmp_path / "mine.toml"
    if case == "a folder":
        path.mkdir()
    elif case == "bytes that are no text":
        path.write_bytes(b'name = "\xff\xfe"')
    elif case == "no user":
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
    assert_says(caught.value, "mine.toml: expected a manifest in TOML", "more than 16,777,216 bytes")


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


def test_the_data_of_the_catalog_read_in_another_way_is_other_data(tmp_path: Path):
    path = tmp_path / "mnist.toml"
    text = (catalog.CATALOG / "mnist.toml").read_text(encoding="utf-8")
    for other in ("transpose = true\n", "label_base = 1\n"):
        path.write_text(other + text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            catalog.read(path)
        assert_says(caught.value, "expected name to be none of the catalog's", "transpose", "choose another name")
    path.write_text(f'transpose = false\nlabel_base = 0\nink = "bright"\n{text}', encoding="utf-8")
    assert catalog.read(path).ink == "bright"


def test_an_unknown_data_set_is_answered_with_those_there_are():
    with pytest.raises(ConfigError) as caught:
        catalog.find("imagenet")
    assert_says(
        caught.value,
        "digits, emnist-balanced, ",
        "fashion-mnist, kmnist, mnist, qmnist",
        "found 'imagenet'",
        "--dataset-file",
    )


PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "no epochs": ({"epochs": 0}, "expected epochs to be an integer from 1 to 10,000; found 0; "),
    "-1 epochs": ({"epochs": -1}, "expected epochs to be an integer from 1 to 10,000; found -1; "),
    "a billion epochs": ({"epochs": 10**9}, "from 1 to 10,000; found 1000000000; "),
    "a batch of 0": (
        {"batch_size": 0},
        "batch_size to be an integer from 1 to 65,536; found 0; ",
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
    "momentum 1": ({"momentum": 1}, "expected momentum to be a number of at least 0 and below 1, or null; found 1; "),
    "an infinite decay": (
        {"weight_decay": float("inf")},
        "a number from 0 to 1, or null; found inf; ",
    ),
    "true epochs": (
        {"epochs": True},
        "expected epochs to be an integer from 1 to 10,000; found True; ",
    ),
    "a true rate": ({"learning_rate": True}, "a number above 0 and at most 10; found True; "),
    "true patience": ({"patience": True}, "expected patience to be an integer from 1 to 10,000, or null; "),
    "a true layer": ({"hidden": [True]}, "each from 1 to 65,536; found [True]; "),
    "a batch in words": ({"batch_size": "many"}, "expected batch_size to be an integer from "),
    "half a row": ({"batch_size": 1.5}, "expected batch_size to be an integer from "),
    "an empty layer": ({"hidden": [50, 0]}, "integers, each from 1 to 65,536; found [50, 0]; "),
    "half a filter": ({"conv": [0.5]}, "expected conv to be a list of at most 12 integers, each from 1 to 4,096; "),
    "all dropped": ({"dropout": 1}, "expected dropout to be a number from 0 to 0.9; found 1; "),
    "no initialization": ({"initialization": "her"}, "glorot, he, lecun, fit; found 'her' (did you mean he?); "),
    "normalized by a number": ({"batch_norm": "much"}, "expected batch_norm to be true or false; found 'much'; "),
    "too many layers": ({"hidden": [1] * 17}, "expected hidden to be a list of at most 16 integers, "),
    "no activation": ({"activation": "tan"}, "found 'tan' (did you mean tanh?); "),
    "all rows held out": ({"validation_fraction": 1}, "to be a number from 0 to 0.9; found 1; "),
    "too large a layer": ({"hidden": [65_537]}, "each from 1 to 65,536; found [65537]; "),
    "more rows held out than there are": ({"validation_fraction": 1.5}, "found 1.5; "),
    "a seed too large": ({"seed": 2**32}, "from 0 to 4,294,967,295; found 4294967296; "),
    "a seed below 0": ({"seed": -1}, "seed to be an integer from 0 to 4,294,967,295; found -1; "),
    "an unknown parameter": ({"epoch": 5}, "; found epoch (did you mean epochs?); remove it or correct its spelling"),
    "patience for nothing": ({"patience": 2, "validation_fraction": 0}, "expected held-out rows, because patience"),
    "momentum without effect": (
        {"optimizer": "adam", "momentum": 0.9},
        "expected momentum with the optimizer sgd or rmsprop only; found it with adam, where it has no effect; remove",
    ),
    "betas of sgd": (
        {"beta_1": 0.9},
        "expected beta_1 with the optimizer adam or adamw only; found it with sgd, where it has no effect; remove",
    ),
    "a decay along a cosine": (
        {"schedule": "cosine", "decay": 0.1},
        "expected decay with the schedule inverse only; found it with cosine, ",
    ),
    "an exponential schedule to zero": (
        {"schedule": "exponential", "final_share": 0},
        "expected a final_share above 0, because an exponential schedule never reaches 0; found 0; raise it",
    ),
    "a warm-up without end": (
        {"warmup_epochs": 50},
        "expected fewer warmup_epochs than epochs; found 50 of 50; raise epochs",
    ),
    "labels smoothed away": ({"label_smoothing": 1}, "to be a number of at least 0 and below 1; found 1; "),
    "a zoom to nothing": ({"zoom": 1}, "expected zoom to be a number from 0 to 0.9; found 1; "),
    "no optimizer": ({"optimizer": "adma"}, "found 'adma' (did you mean adam?); "),
    "an epsilon of 0": ({"optimizer": "adam", "epsilon": 0}, "expected epsilon to be a number above 0 and at most 1"),
    "10 MB of text": ({"activation": "x" * 10_000_000}, "xxx…; correct it"),
    "10 MB of numbers": ({"hidden": [1] * 5_000_000}, "hidden to be a list of at most 16 integers"),
    "a name of 10 MB": ({"x" * 10_000_000: 1}, "expected one of hidden, activation,"),
    "a name over two lines": ({"a\nb": 1}, "found a·b; remove it or correct its spelling"),
}


@pytest.mark.parametrize(("overrides", "message"), PARAMETERS.values(), ids=PARAMETERS.keys())
def test_a_wrong_parameter_is_refused_in_one_short_sentence(overrides: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        training_config(catalog.find("mnist"), "default", overrides)
    assert_says(caught.value, "training parameters: expected ", message)


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
    assert_says(caught.value, "expected a profile of default, tutorial, fast, conv, best, tuned; found 'xxx")


@pytest.mark.parametrize(
    "arguments",
    [["run", "../../etc"], ["run", "--set", "epochs=0"], ["validate", "--dataset-file", "mine.toml"]],
    ids=["a data set", "a parameter", "a manifest"],
)
def test_the_command_says_it_with_2_and_makes_no_store(tmp_path: Path, arguments: list[str]):
    badfiles.write(tmp_path).manifest.rename(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text("surprise = 1")
    paths = set(tmp_path.rglob("*"))
    process = subprocess.run(
        [str(BIN / "idxflow"), *arguments, "--store", str(tmp_path / "new")],
        cwd=tmp_path,
        env=clean_environment(tmp_path, first_start=True, TMPDIR="/nowhere", KERAS_HOME="/dev/null/keras"),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert_says(process.stderr.removesuffix("\n"), "idxflow: ")
    assert set(tmp_path.rglob("*")) == paths
