"""The catalog and its manifests: what is known, and that nothing else is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import catalog
from storage.errors import ConfigError
from tasks.config import training_config

GOOD = 'name = "mine"\nclasses = ["a", "b"]\nimage_shape = [20, 16]\n'
DIGEST = "0" * 64


def read(folder: Path, text: str) -> catalog.Dataset:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return catalog.read(path)


@pytest.mark.parametrize("name", catalog.names())
def test_every_data_set_of_the_catalog_is_whole(name: str):
    dataset = catalog.find(name)
    assert dataset.name == name
    assert [a.role for a in dataset.archives] == list(catalog.ROLES)
    assert all(a.pinned for a in dataset.archives)
    assert dataset.embedded or all(a.bytes and len(a.mirrors) == 2 for a in dataset.archives)
    assert dataset.licence != "not stated"
    training_config(dataset)


def test_a_small_manifest_gets_defaults(tmp_path: Path):
    dataset = read(tmp_path, GOOD + 'source = "data"\n')
    assert dataset.source == tmp_path / "data"
    assert dataset.archive("test-labels").file == "t10k-labels-idx1-ubyte.gz"
    assert dataset.floors == catalog.Floors()
    assert dataset.gate == catalog.Gate("better", 0.05, 0.005, 0.05)
    assert not dataset.archive("train-images").pinned


def test_a_gate_of_ones_own(tmp_path: Path):
    gate = '[gate]\npolicy = "not_worse"\nalpha = 0.1\nmargin = 0\nmax_class_loss = 1\n'
    assert read(tmp_path, GOOD + gate).gate == catalog.Gate("not_worse", 0.1, 0, 1)
    assert read(tmp_path, GOOD + '[gate]\npolicy = "ask"\n').gate == catalog.Gate("ask")


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


BAD = {
    "not TOML": ("name = ", "expected a manifest in TOML"),
    "no name": ('classes = ["a", "b"]\nimage_shape = [2, 2]', "name to be a text; found nothing"),
    "unknown key": (GOOD + "surprise = 1", "found surprise"),
    "unknown archive": (GOOD + "[archives.dev-images]", "found archives.dev-images"),
    "unknown archive key": (GOOD + '[archives.train-images]\nmd5 = "x"', "found archives.train-images.md5"),
    "unknown limit": (GOOD + "[limits]\nmax_fun = 1", "found limits.max_fun"),
    "duplicate key": (GOOD + 'name = "again"', "expected a manifest in TOML"),
    "one class": ('name = "m"\nclasses = ["a"]\nimage_shape = [2, 2]', "2 to 256 different names"),
    "same class twice": ('name = "m"\nclasses = ["a", "a"]\nimage_shape = [2, 2]', "different names"),
    "control character in a class": ('name = "m"\nclasses = ["a", "b\\u0000"]\nimage_shape = [2, 2]', "printable"),
    "shape of one": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [2]', "height, width"),
    "shape of zero": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [0, 2]', "height, width"),
    "shape true": ('name = "m"\nclasses = ["a", "b"]\nimage_shape = [true, 2]', "height, width"),
    "short digest": (GOOD + '[archives.train-images]\nsha256 = "abc"', "64 hexadecimal digits"),
    "negative size": (GOOD + "[archives.train-images]\nbytes = -1", "a number of bytes"),
    "path as file": (GOOD + '[archives.train-images]\nfile = "../x.gz"', "a file name without a folder"),
    "ftp mirror": ('mirrors = ["ftp://a.example/"]\n' + GOOD, "https:// or http://"),
    "mirror without digest": ('mirrors = ["https://a.example/"]\n' + GOOD, "idxflow manifest FOLDER"),
    "share over one": (GOOD + "[limits]\nmax_leaked = 2", "a number from 0 to 1"),
    "unknown policy": (GOOD + '[gate]\npolicy = "best"', "better, not_worse, ask; found 'best'"),
    "policy of no kind": (GOOD + "[gate]\npolicy = []", "gate.policy to be one of"),
    "alpha of zero": (GOOD + "[gate]\nalpha = 0", "gate.alpha to be a number above 0 and below 0.5; found 0"),
    "alpha of one half": (GOOD + "[gate]\nalpha = 0.5", "above 0 and below 0.5"),
    "alpha not a number": (GOOD + "[gate]\nalpha = nan", "above 0 and below 0.5"),
    "alpha as text": (GOOD + '[gate]\nalpha = "0.05"', "gate.alpha to be a number"),
    "margin true": (GOOD + "[gate]\nmargin = true", "gate.margin to be a number"),
    "margin in points": (GOOD + "[gate]\nmargin = 5", "gate.margin to be a number from 0 to 1"),
    "negative class loss": (GOOD + "[gate]\nmax_class_loss = -0.1", "gate.max_class_loss to be a number from 0 to 1"),
    "unknown gate key": (GOOD + "[gate]\nbeta = 0.1", "found gate.beta"),
    "rows as text": (GOOD + '[rows]\ntrain = "many"', "a number of rows"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD.keys())
def test_a_wrong_manifest_is_refused_by_key(tmp_path: Path, text: str, said: str):
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "mine.toml") in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc",
        "a/b",
        ".",
        "",
        "x" * 65,
        "CON ",
        "a\\u0000",
        "a\\nb",
        "\\u202Ea",
        "Mine",
        "-a",
    ],
)
def test_a_name_can_never_leave_the_store(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="expected name to be"):
        read(tmp_path, GOOD.replace('"mine"', f'"{name}"'))


def test_what_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file"):
        catalog.read(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"digits, fashion-mnist, kmnist, mnist.*--dataset-file"):
        catalog.find("imagenet")
