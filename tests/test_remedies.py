"""What an error tells to do is done, and leads on: the same call works then, or the one that is named.

Each refusal of the code is a place where one of the project's errors is made, known by its file and function. `CASES`
provokes it; `OF_OTHERS` names the tests of those that need a server, a broken disk, a damaged store or a whole run.
"""

from __future__ import annotations

import ast
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from flows import output, retrain
from flows.cli import _main
from flows.job import Request
from flows.manifest import manifest_of
from flows.service.application import AUTH
from flows.service.deployments import read_plan
from flows.service.processes import Command, Service
from flows.service.server import address, auth_string, checked_database, checked_names, is_up, known_auth_string
from flows.watch import Wanted, _inbox
from storage import catalog, errors, idx, underway
from storage.catalog import DEFAULT_FILES
from storage.errors import IdxflowError
from storage.files import read_json, sealed
from storage.records import Done, Split, SplitName, TrainedModel
from storage.registry import Registry
from storage.store import Store
from tasks import classifier, holdout, pictures
from tasks.config import training_config
from tasks.decide import Candidate, Champion, compare
from tasks.decode import decode
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.normalize import normalize
from tasks.predict import Model, load_champion
from tests.conftest import bars
from tests.faultserver import Exchange, FaultServer, status
from tests.faultserver import good as whole_body
from tests.models import split
from tests.runs import hopped
from tests.test_hostile_store import reseal
from tests.test_manifest import written
from tests.test_predict import SHAPE, blobs, blobs_dataset, registered

ROOT = Path(__file__).resolve().parent.parent
GOOD = bars(120, 30, 3, (9, 7))
MANIFEST = 'name = "mine"\nclasses = ["0", "1", "2"]\nimage_shape = [9, 7]\nsource = "mine"\n'
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, IdxflowError)}


@dataclass
class Here:
    """An empty folder to be in, a champion of `tiny` to ask, and what has been refused."""

    folder: Path
    ready: Path
    patch: pytest.MonkeyPatch
    made: list[IdxflowError] = field(default_factory=list)

    @property
    def mine(self) -> Path:
        return self.folder / "mine"

    @property
    def model(self) -> Model:
        return load_champion("tiny", self.ready)

    def set(self, **changes: np.ndarray) -> Path:
        """Write the good set, or one with changes; `train_images` stands for `train-images`."""
        return written(self.mine, GOOD | {role.replace("_", "-"): array for role, array in changes.items()})

    def manifest(self, more: str = "", text: str = MANIFEST) -> Path:
        path = self.folder / "mine.toml"
        path.write_text(text + more, encoding="utf-8")
        return path

    def decode(self, source: str | None = None) -> Done[Split]:
        """Fetch and decode the archives of `mine.toml`, and measure the training pixels; validate nothing."""
        store, dataset = Store(self.folder / "store"), catalog.read(self.folder / "mine.toml")
        store.prepare()
        archives = [fetch.fn(store, dataset, spec, source).record for spec in dataset.archives]
        train, _ = decode.fn(store, dataset, "train", *archives[:2]), decode.fn(store, dataset, "test", *archives[2:])
        normalize.fn(store, dataset, train.record, training_config(dataset))
        return train

    def validate(self, **parameters: Any) -> None:
        """Do what `idxflow validate --dataset-file mine.toml` does, without Prefect."""
        store = Store(self.folder / "store")
        asked = {"dataset_file": str(self.folder / "mine.toml"), "to": retrain._to_validation, **parameters}
        outcome = hopped(store, **asked)
        if outcome["error"]:
            raise next(error for error in reversed(self.made) if str(error) == outcome["error"]["sentence"])

    def run(self, *words: str, store: bool = True) -> None:
        """Run a command, in the store that has a champion."""
        if _main([*words, *(["--store", str(self.ready)] if store else [])]):
            raise self.made[-1]

    def train(self, **parameters: Any) -> None:
        """Do what `idxflow run --dataset-file mine.toml` does up to the decision, without Prefect."""
        self.set()
        self.manifest("[floors]\naccuracy = 0\nclass_recall = 0\n")
        self.validate(to=retrain._to_decision, **parameters)

    @property
    def own(self) -> Store:
        """A copy of the store, which `ready` is from now on."""
        copy = self.folder / "copy"
        if not copy.exists():
            shutil.copytree(self.ready, copy)
        self.ready = copy
        return Store(copy)

    def change(self, *words: str) -> None:
        """Run a command that changes the registry, on a copy of the store."""
        assert self.own
        self.run(*words)

    def record(self, number: int = 1) -> TrainedModel:
        """The model of a version, as the store has it."""
        store = Store(self.ready)
        return store.get("tiny", "train", Registry(store, "tiny").version(number).model, TrainedModel)

    def train_again(self) -> None:
        """Do what trained version 2."""
        registered(self.own, blobs_dataset(self.folder), promote=False, epochs=1, seed=2)

    def save(self, name: str, pixels: np.ndarray, **how: Any) -> Path:
        Image.fromarray(pixels).save(self.folder / name, **how)
        return self.folder / name

    def read(self, name: str, **wish: Any) -> np.ndarray:
        return np.concatenate(list(pictures.read(self.folder / name, pictures.Wish(SHAPE, **wish), lambda _: None)))

    def write(self, name: str, data: bytes) -> Path:
        (self.folder / name).write_bytes(data)
        return self.folder / name


Act = Callable[[Here], object]


@dataclass(frozen=True)
class Case:
    """One refusal: how it comes about, what its message tells to do, and doing that."""

    provoke: Act
    says: str
    """A part of the message that tells what to do."""
    mend: Act
    then: Act | None = None
    """What works after that; None: what was refused."""


def whole(*acts: Act) -> Act:
    def all_of(here: Here) -> None:
        for act in acts:
            act(here)

    return all_of


def nothing(here: Here) -> None:
    """The remedy is in the call that follows."""


def manifest(**how: Any) -> Act:
    return lambda here: manifest_of(here.mine, **how)


def changed(**changes: np.ndarray) -> Act:
    """Make the manifest of a set with these arrays."""
    return lambda here: (here.mine.exists() or here.set(**changes), manifest_of(here.mine))


def validated(more: str = "", **changes: np.ndarray) -> Act:
    def act(here: Here) -> None:
        if not here.mine.exists():
            here.set(**changes)
            here.manifest(more)
        here.validate()

    return act


def decoded(more: str = "", **changes: np.ndarray) -> Act:
    def act(here: Here) -> None:
        if not here.mine.exists():
            here.set(**changes)
            here.manifest(more)
        here.decode()

    return act


def good(here: Here) -> None:
    here.set()


def declares(more: str) -> Act:
    return lambda here: here.manifest(more)


def reads(more: str, text: str = MANIFEST) -> Act:
    """Read a manifest, which is written once."""
    return lambda here: catalog.read(
        here.folder / "mine.toml" if (here.folder / "mine.toml").exists() else here.manifest(more, text)
    )


def of_file(data: bytes) -> Act:
    """Read an IDX file, which is written once."""
    return lambda here: idx.read(here.folder / "x" if (here.folder / "x").exists() else here.write("x", data))


def shell(line: str) -> Act:
    return lambda here: subprocess.run(["bash", "-c", line], cwd=here.folder, check=False, capture_output=True)


LABELS, IMAGES = GOOD["train-labels"], GOOD["train-images"]
FILE = idx.encode(IMAGES)
PACKED = gzip.compress(FILE, mtime=0)
COLOUR = np.repeat(IMAGES[..., None], 3, axis=3)
LITTLE = (LABELS.astype("<i4")).view(">i4")
WIDE = np.stack([LABELS, LABELS], axis=1).astype(">i4")
WIDE_TEST = WIDE[:30]
ONE = blobs()["test-images"][0]


def opened(name: str) -> np.ndarray:
    with Image.open(name) as picture:
        return np.asarray(picture)


def pngs_as_idx(here: Here) -> None:
    """Do what `idxflow manifest` says about pictures."""
    for role, array in GOOD.items():
        (here.mine / DEFAULT_FILES[role].removesuffix(".gz")).write_bytes(idx.encode(array))


def only_pictures(here: Here) -> None:
    here.mine.mkdir(exist_ok=True)
    Image.fromarray(IMAGES[0]).save(here.mine / "0001.png")
    manifest_of(here.mine)


CASES: dict[str, Case] = {
    # --- idxflow manifest -----------------------------------------------------------------------------------------
    "manifest: no folder": Case(manifest(), "correct the path", good),
    "manifest: pictures": Case(only_pictures, "storage.idx.encode(array) gives the bytes of one", pngs_as_idx),
    "manifest: the folder above": Case(
        lambda here: (here.set(), manifest_of(here.folder)), "/mine, which has them", nothing, manifest()
    ),
    "manifest: two files of a role": Case(
        lambda here: (
            here.mine.exists()
            or (here.set(), (here.mine / "b-train-images").touch(), (here.mine / "c-train-images.gz").touch()),
            manifest_of(here.mine),
        ),
        "move the others to another folder",
        lambda here: [shutil.move(path, here.folder) for path in here.mine.glob("?-*")],
    ),
    "manifest: a name": Case(
        lambda here: (here.set(), manifest_of(here.mine, "My Data")),
        "choose another name",
        nothing,
        manifest(name="my-data"),
    ),
    "manifest: a file name that is no text": Case(
        lambda here: (
            here.mine.exists()
            or here.set().joinpath(DEFAULT_FILES["train-images"]).rename(here.mine / "train-images\udcff"),
            manifest_of(here.mine),
        ),
        "rename it",
        lambda here: (here.mine / "train-images\udcff").rename(here.mine / "train-images.gz"),
    ),
    "manifest: one class": Case(
        changed(train_labels=LABELS * 0, test_labels=GOOD["test-labels"] * 0), "give files with that many classes", good
    ),
    "manifest: other rows": Case(changed(train_labels=LABELS[:-1]), "give the two files that belong together", good),
    "manifest: other sizes": Case(
        changed(test_images=np.zeros((30, 8, 7), np.uint8)), "files that belong together", good
    ),
    "manifest: labels as images": Case(changed(train_images=LABELS), "give the archive of the images", good),
    "manifest: flat images": Case(
        changed(train_images=IMAGES.reshape(120, -1)),
        "in NumPy with .reshape(-1, height, width)",
        lambda here: here.set(train_images=IMAGES.reshape(120, -1).reshape(-1, 9, 7)),
    ),
    "manifest: colour images": Case(
        changed(train_images=COLOUR),
        ".mean(axis=3).astype(np.uint8)",
        lambda here: here.set(train_images=COLOUR.mean(axis=3).astype(np.uint8)),
    ),
    "manifest: float images": Case(
        changed(train_images=IMAGES.astype(">f4")),
        ".astype(np.uint8)",
        lambda here: here.set(train_images=IMAGES.astype(">f4").astype(np.uint8)),
    ),
    "manifest: little-endian labels": Case(
        changed(train_labels=LITTLE), "write them big-endian", lambda here: here.set(train_labels=LABELS.astype(">i4"))
    ),
    "manifest: numbers of rows": Case(
        changed(train_labels=np.arange(300, dtype=">i2"), train_images=np.zeros((300, 9, 7), np.uint8)),
        "give the file with the classes",
        good,
    ),
    "manifest: float labels": Case(
        changed(train_labels=LABELS.astype(">f4")),
        ".astype(np.uint8)",
        lambda here: here.set(train_labels=LABELS.astype(">f4").astype(np.uint8)),
    ),
    "manifest: images as labels": Case(changed(train_labels=IMAGES), "give the archive of the labels", good),
    "manifest: labels of several columns": Case(
        changed(train_labels=WIDE, test_labels=WIDE_TEST), "--label-column 0", nothing, manifest(label_column=0)
    ),
    "manifest: a column that is not there": Case(
        lambda here: (here.set(train_labels=WIDE, test_labels=WIDE_TEST), manifest_of(here.mine, label_column=2)),
        "choose another --label-column than 2, below 2",
        nothing,
        manifest(label_column=1),
    ),
    # --- validate and run: archives -------------------------------------------------------------------------------
    "labels from 1, in a manifest for 0": Case(
        validated(train_labels=LABELS + 1, test_labels=GOOD["test-labels"] + 1),
        "change classes and labels",
        declares("labels = [1, 2, 3]\n"),
    ),
    "labels below 0": Case(
        decoded(
            train_labels=LABELS.astype("i1") - np.int8(1), test_labels=GOOD["test-labels"].astype("i1") - np.int8(1)
        ),
        "declare the value of each class as labels = […]",
        declares("labels = [-1, 0, 1]\n"),
    ),
    "labels of several columns": Case(
        decoded(train_labels=WIDE, test_labels=WIDE_TEST),
        "such as label_column = 0",
        declares("label_column = 0\n"),
    ),
    "a column that is not there": Case(
        decoded("label_column = 2\n", train_labels=WIDE, test_labels=WIDE_TEST),
        "correct label_column",
        declares("label_column = 1\n"),
    ),
    "rows that are not declared": Case(
        decoded("[rows]\ntrain = 121\n"), "or correct [rows] train in", declares("[rows]\ntrain = 120\n")
    ),
    "another size": Case(
        decoded(train_images=IMAGES.swapaxes(1, 2), test_images=GOOD["test-images"].swapaxes(1, 2)),
        "or correct image_shape in",
        lambda here: here.manifest(text=MANIFEST.replace("[9, 7]", "[7, 9]")),
    ),
    "other rows": Case(decoded(train_labels=LABELS[:-1]), "give the two files that belong together", good),
    "float images": Case(decoded(train_images=IMAGES.astype(">f4")), "write the images as uint8", good),
    "float labels": Case(decoded(train_labels=LABELS.astype(">f4")), "write the labels as uint8", good),
    "images as labels": Case(decoded(train_labels=IMAGES), "give the archive of the labels", good),
    "pixels of 0 to 15": Case(
        validated(train_images=IMAGES >> 4, test_images=GOOD["test-images"] >> 4),
        "change [limits] min_pixel_max",
        declares("[limits]\nmin_pixel_max = 15\nmax_leaked = 1\nmax_blank = 1\n"),
    ),
    "no source": Case(
        lambda here: (here.manifest(text=MANIFEST.replace('source = "mine"\n', "")), here.set(), here.decode()),
        "give one with --source FOLDER",
        nothing,
        lambda here: here.decode(source=str(here.mine)),
    ),
    "a source that is empty": Case(
        lambda here: (here.mine.mkdir(exist_ok=True), here.manifest(), here.decode()),
        "give the folder that has them all with --source FOLDER",
        lambda here: written(here.folder / "other", GOOD),
        lambda here: here.decode(source=str(here.folder / "other")),
    ),
    "a digest of another file": Case(
        decoded(f'[archives.train-images]\nsha256 = "{"0" * 64}"\n'),
        "its manifest with `idxflow manifest FOLDER` and give that with --dataset-file",
        lambda here: here.manifest(text=manifest_of(here.mine)),
    ),
    "a source that lacks a file": Case(
        lambda here: (
            *(here.set(), here.manifest(text=manifest_of(here.mine))),
            *(shutil.rmtree(here.mine), here.decode()),
        ),
        "give another with --source FOLDER",
        lambda here: written(here.folder / "other", GOOD),
        lambda here: here.decode(source=str(here.folder / "other")),
    ),
    "all pixels alike": Case(decoded(train_images=IMAGES * 0), "check the image archive", good),
    # --- IDX files ------------------------------------------------------------------------------------------------
    "a cut file": Case(of_file(FILE[:-1]), "fetch or copy the file again", lambda here: here.write("x", FILE)),
    "garbage after gzip": Case(
        of_file(PACKED + b"garbage"),
        "gunzip -c OLD | gzip -n > NEW",
        shell("mv x OLD; gunzip -c OLD | gzip -n > x"),
    ),
    "gzip in gzip": Case(of_file(gzip.compress(PACKED)), "gunzip -c OLD > NEW", shell("mv x OLD; gunzip -c OLD > x")),
    "a ZIP file": Case(
        lambda here: (
            (here.folder / "x").exists() or zipfile.ZipFile(here.folder / "x", "w").writestr("inner", FILE),
            idx.read(here.folder / "x"),
        ),
        "unpack it, and give the IDX file in it",
        lambda here: zipfile.ZipFile(here.folder / "x").extractall(here.folder),
        lambda here: idx.read(here.folder / "inner"),
    ),
    "a little-endian magic number": Case(
        of_file(FILE[3::-1] + FILE[4:]), "write the header big-endian", lambda here: here.write("x", FILE)
    ),
    "little-endian dimensions": Case(
        of_file(FILE[:4] + b"".join(FILE[n : n + 4][::-1] for n in (4, 8, 12)) + FILE[16:]),
        "Write them big-endian",
        lambda here: here.write("x", FILE),
    ),
    # --- manifests ------------------------------------------------------------------------------------------------
    "no such data set": Case(
        lambda here: catalog.find("mist"), "give one of these", nothing, lambda here: catalog.find("mnist")
    ),
    "no manifest": Case(
        lambda here: catalog.read(here.folder / "mine.toml"),
        "write a new one with `idxflow manifest FOLDER`",
        lambda here: here.manifest(text=manifest_of(here.set())),
    ),
    "an unknown key": Case(
        reads("labls = [1]\n"), "remove it or correct its spelling", declares("labels = [1, 2, 3]\n")
    ),
    "a wrong value": Case(reads("labels = [1]\n"), "correct it", declares("labels = [1, 2, 3]\n")),
    "a key that is missing": Case(
        reads("", MANIFEST.replace('name = "mine"\n', "")), "found nothing; add it", declares("")
    ),
    "a name of the catalog": Case(
        reads("", MANIFEST.replace('"mine"', '"mnist"', 1)), "choose another name", declares("")
    ),
    "a mirror without a digest": Case(
        reads('mirrors = ["https://example.org/"]\n'),
        "`idxflow manifest FOLDER` writes them for files you have",
        lambda here: here.manifest(text='mirrors = ["https://example.org/"]\n' + manifest_of(here.set())),
    ),
    # --- training parameters --------------------------------------------------------------------------------------
    "an unknown profile": Case(
        lambda here: training_config(catalog.find("digits"), "slow"),  # type: ignore[arg-type]
        "give one of these",
        nothing,
        lambda here: training_config(catalog.find("digits"), "fast"),
    ),
    "a setting without a value": Case(
        lambda here: Request(settings=("epochs",)).resolve(),
        "write it like --set epochs=5",
        nothing,
        lambda here: Request(settings=("epochs=5",)).resolve(),
    ),
    "an unknown setting": Case(
        lambda here: Request(settings=("epoch=5",)).resolve(),
        "correct its spelling",
        nothing,
        lambda here: Request(settings=("epochs=5",)).resolve(),
    ),
    "a setting out of bounds": Case(
        lambda here: Request(settings=("epochs=0",)).resolve(),
        "correct it",
        nothing,
        lambda here: Request(settings=("epochs=1",)).resolve(),
    ),
    "patience without rows to watch": Case(
        lambda here: Request(settings=("patience=1", "validation_fraction=0")).resolve(),
        "raise it",
        nothing,
        lambda here: Request(settings=("patience=1", "validation_fraction=0.1")).resolve(),
    ),
    "nothing to fit to": Case(
        lambda here: fitted(here, 0.9, held_out="tail"),
        "lower validation_fraction",
        nothing,
        lambda here: fitted(here, 0.1),
    ),
    "a class of which all rows are held out": Case(
        lambda here: fitted(here, 0.4, held_out="tail"),
        "--set held_out=stratified",
        nothing,
        lambda here: fitted(here, 0.4, held_out="stratified"),
    ),
    "a fraction of no row, and patience": Case(
        lambda here: fitted(here, 1e-17, patience=1),
        "raise validation_fraction",
        nothing,
        lambda here: fitted(here, 0.5, rows=120, patience=1),
    ),
    "less memory than for a batch": Case(
        lambda here: here.train(memory="1KB"),
        "lower batch_size",
        nothing,
        lambda here: here.train(memory="1KB", batch_size=1, epochs=1),
    ),
    "a rate that diverges": Case(
        lambda here: here.train(learning_rate=10, activation="relu", hidden=[100, 100]),
        "--set learning_rate=1",
        nothing,
        lambda here: here.train(learning_rate=1, activation="relu", hidden=[100, 100], epochs=1),
    ),
    # --- sources and stores ---------------------------------------------------------------------------------------
    "an address with a password": Case(
        lambda here: Request(source="https://me:secret@example.org/").resolve(),
        "in the environment variable IDXFLOW_SOURCE instead",
        lambda here: here.patch.setenv("IDXFLOW_SOURCE", "https://me:secret@example.org/"),
        lambda here: Request().resolve(),
    ),
    "a source that is no folder and no address": Case(
        lambda here: Request(source="s3://bucket").resolve(),
        "give one of these",
        nothing,
        lambda here: Request(source="https://example.org/").resolve(),
    ),
    "a source with a NUL": Case(
        lambda here: Request(source="a\0").resolve(), "remove it", nothing, lambda here: Request(source="a").resolve()
    ),
    "an address for a file without a digest": Case(
        lambda here: (here.set(), here.manifest(), here.decode("https://127.0.0.1:1/")),
        "give a folder as --source",
        nothing,
        lambda here: here.decode(str(here.mine)),
    ),
    "a store at an address": Case(
        lambda here: here.run("verify", "--store", "s3://bucket/x", store=False),
        "give a path instead",
        nothing,
        lambda here: here.run("verify"),
    ),
    "a store that is a file": Case(
        lambda here: here.run("verify", "--store", str(here.write("file", b"")), store=False),
        "choose another with --store",
        nothing,
        lambda here: here.run("verify"),
    ),
    "a store that is not there": Case(
        lambda here: here.run("gc", "--store", str(here.folder / "none"), store=False),
        "name another with --store",
        nothing,
        lambda here: here.run("gc"),
    ),
    "a link in the place of a record": Case(
        lambda here: under_way(here), "or remove it", lambda here: (here.folder / "store" / RECORD).unlink()
    ),
    # --- predict and export ---------------------------------------------------------------------------------------
    "predict: no such file": Case(
        lambda here: here.run("predict", "tiny", str(here.folder / "x.png")),
        "correct the path",
        lambda here: here.save("x.png", ONE),
    ),
    "predict: a GIF": Case(
        lambda here: (here.save("x.gif", ONE), here.read("x.gif")),
        "convert it to one of these",
        lambda here: here.save("x.png", opened("x.gif")),
        lambda here: here.read("x.png"),
    ),
    "predict: another size": Case(
        lambda here: here.read(here.save("x.png", ONE.repeat(2, 0)).name),
        "--resize scales them",
        nothing,
        lambda here: here.read("x.png", resize=True),
    ),
    "predict: flat rows": Case(
        lambda here: (np.save("x.npy", ONE.reshape(1, -1)), here.read("x.npy")),
        ".reshape(-1, 10, 8)",
        lambda here: np.save("x.npy", ONE.reshape(1, -1).reshape(-1, 10, 8)),
        lambda here: here.read("x.npy"),
    ),
    "predict: floats": Case(
        lambda here: (np.save("x.npy", ONE / 255), here.read("x.npy")),
        "scale to 0-255 and convert, in NumPy with .astype(np.uint8)",
        lambda here: np.save("x.npy", (ONE / 255 * 255).astype(np.uint8)),
        lambda here: here.read("x.npy"),
    ),
    "predict: labels": Case(
        lambda here: (np.save("x.npy", LABELS), here.read("x.npy")),
        "give grey images, not labels",
        lambda here: np.save("x.npy", ONE),
        lambda here: here.read("x.npy"),
    ),
    "predict: a damaged array": Case(
        lambda here: (here.write("x.npy", b"\x93NUMPY"), here.read("x.npy")),
        "in NumPy with np.save of an array of uint8",
        lambda here: np.save("x.npy", ONE),
        lambda here: here.read("x.npy"),
    ),
    "predict: a damaged archive of arrays": Case(
        lambda here: (here.write("x.npz", b"PK"), here.read("x.npz")),
        "np.savez(…, images=…)",
        lambda here: np.savez("x.npz", images=ONE[None]),
        lambda here: here.read("x.npz"),
    ),
    "predict: 16 bits": Case(
        lambda here: here.read(here.save("x.png", ONE.astype(np.uint16) * 257).name),
        "convert it to 8-bit grey",
        lambda here: here.save("x.png", (opened("x.png") // 257).astype(np.uint8)),
        lambda here: here.read("x.png"),
    ),
    "predict: transparent": Case(
        lambda here: here.read(here.save("x.png", np.dstack([ONE] * 4)).name),
        "put it on a background",
        lambda here: here.save(
            "x.png", (opened("x.png") * (opened("x.png")[:, :, 3:] / 255))[:, :, 0].astype(np.uint8)
        ),
        lambda here: here.read("x.png"),
    ),
    "predict: a damaged picture": Case(
        lambda here: (here.write("x.png", b"\x89PNG"), here.read("x.png")),
        "copy or save it again",
        lambda here: here.save("x.png", ONE),
        lambda here: here.read("x.png"),
    ),
    "predict: no champion": Case(
        lambda here: here.run("predict", "other", str(here.save("x.png", ONE))),
        "or name another store",
        nothing,
        lambda here: here.run("predict", "tiny", "x.png"),
    ),
    "predict: no name": Case(
        lambda here: here.run("predict", "a/b", str(here.save("x.png", ONE))),
        "lists the names",
        nothing,
        lambda here: here.run("status"),
    ),
    "predict: no version": Case(
        lambda here: here.run("predict", "tiny", str(here.save("x.png", ONE)), "--version", "best"),
        "`idxflow registry history DATASET` lists them",
        nothing,
        lambda here: here.run("registry", "history", "tiny"),
    ),
    "predict: to a folder": Case(
        lambda here: here.run("predict", "tiny", str(here.save("x.png", ONE)), "--out", str(here.folder)),
        "choose another name",
        nothing,
        lambda here: here.run("predict", "tiny", "x.png", "--out", "x.parquet"),
    ),
    "predict: to what it reads": Case(
        lambda here: here.run("predict", "tiny", str(here.save("x.png", ONE)), "--out", "x.png"),
        "choose another",
        nothing,
        lambda here: here.run("predict", "tiny", "x.png", "--out", "y.parquet"),
    ),
    "predict: into a file": Case(
        lambda here: here.run("predict", "tiny", str(here.save("x.png", ONE)), "--out", "x.png/y"),
        "choose another",
        nothing,
        lambda here: here.run("predict", "tiny", "x.png", "--out", "y.parquet"),
    ),
    "predict in Python: floats": Case(
        lambda here: here.model.predict((ONE / 1).reshape(-1)),
        "in NumPy with .astype(np.uint8) and .reshape",
        nothing,
        lambda here: here.model.predict((ONE / 1).astype(np.uint8).reshape(SHAPE)),
    ),
    "predict in Python: floats for a trained model": Case(
        lambda here: classifier.predict(here.record(), ONE / 1),
        "convert them in NumPy with .astype(np.uint8) and .reshape(-1, height, width)",
        nothing,
        lambda here: classifier.predict(here.record(), (ONE / 1).astype(np.uint8).reshape(-1, *SHAPE)),
    ),
    "predict in Python: other weights than the model's": Case(
        lambda here: (exchange_weights(here), classifier.predict(here.record(2), ONE[None])),
        ", and train again",
        lambda here: (shutil.rmtree(here.record(2).folder), here.train_again()),
        lambda here: classifier.predict(here.record(2), ONE[None]),
    ),
    "answers about other rows": Case(
        lambda here: compared(here, scored="test"),
        "run again, so that both are scored anew",
        nothing,
        lambda here: compared(here, scored="train"),
    ),
    "export: an unknown format": Case(
        lambda here: here.run("export", "tiny", "--format", "pickle"),
        "choose one of these",
        nothing,
        lambda here: here.run("export", "tiny", "--format", "onnx"),
    ),
    "export: to what is there": Case(
        lambda here: here.run("export", "tiny", "--format", "onnx", "--out", str(here.folder)),
        "choose another --out",
        nothing,
        lambda here: here.run("export", "tiny", "--format", "onnx", "--out", "new"),
    ),
    "export: into a file": Case(
        lambda here: here.run("export", "tiny", "--format", "onnx", "--out", str(here.write("file", b"") / "x")),
        "choose another --out",
        nothing,
        lambda here: here.run("export", "tiny", "--format", "onnx", "--out", "new"),
    ),
    # --- the other commands ---------------------------------------------------------------------------------------
    "a figure of an unknown kind": Case(
        lambda here: destination(here, "x.gif"), "choose such a name", nothing, lambda here: destination(here, "x.png")
    ),
    "a figure in a folder that is not there": Case(
        lambda here: destination(here, "new/x.png"), "make it", lambda here: (here.folder / "new").mkdir()
    ),
    "a figure in the store": Case(
        lambda here: destination(here, here.ready / "x.png"),
        "choose another place",
        nothing,
        lambda here: destination(here, "x.png"),
    ),
    "a figure that is a folder": Case(
        lambda here: ((here.folder / "x.png").mkdir(exist_ok=True), destination(here, "x.png")),
        "choose another name",
        nothing,
        lambda here: destination(here, "y.png"),
    ),
    "a name that is too long": Case(
        lambda here: output.write(here.folder / ("x" * 300), b""),
        "choose another",
        nothing,
        lambda here: output.write(here.folder / "x", b""),
    ),
    "a figure over another file": Case(
        lambda here: destination(here, here.write("x.png", b"text")),
        "or remove it",
        lambda here: (here.folder / "x.png").unlink(),
        lambda here: destination(here, "x.png"),
    ),
    "registry: no such data set": Case(
        lambda here: here.run("registry", "history", "other"),
        "name another store",
        nothing,
        lambda here: here.run("registry", "history", "tiny"),
    ),
    "registry: no such version": Case(
        lambda here: here.run("registry", "show", "tiny", "7"),
        "give one of v1 to v2",
        nothing,
        lambda here: here.run("registry", "show", "tiny", "1"),
    ),
    "promote: without force": Case(
        lambda here: here.change("promote", "tiny", "2"),
        "found no --force",
        nothing,
        lambda here: here.change("promote", "tiny", "2", "--force", "--reason", "x"),
    ),
    "promote: without a reason": Case(
        lambda here: here.change("promote", "tiny", "2", "--force"),
        '--reason "class 8 is worse"',
        nothing,
        lambda here: here.change("promote", "tiny", "2", "--force", "--reason", "class 8 is worse"),
    ),
    "promote: the champion": Case(
        lambda here: here.change("promote", "tiny", "1", "--force", "--reason", "x"),
        "choose another",
        nothing,
        lambda here: here.change("promote", "tiny", "2", "--force", "--reason", "x"),
    ),
    "promote: a damaged version": Case(
        lambda here: (cut(here), here.change("promote", "tiny", "2", "--force", "--reason", "x")),
        "or train it again",
        lambda here: here.train_again(),
        lambda here: here.change("promote", "tiny", "2", "--force", "--reason", "x"),
    ),
    "promote: a version of other weights": Case(
        lambda here: (change_version(here), here.change("promote", "tiny", "2", "--force", "--reason", "x")),
        "restore this one from a backup",
        lambda here: shutil.copy(here.folder / "backup", here.ready / VERSION),
        lambda here: here.change("promote", "tiny", "2", "--force", "--reason", "x"),
    ),
    "registry: no champion yet": Case(
        lambda here: (here.set(), here.manifest(), here.validate(), shown(here)),
        "`idxflow run --dataset-file FILE --store",
        lambda here: here.train(epochs=1),
        lambda here: shown(here),
    ),
    "rollback: to what was never champion": Case(
        lambda here: here.change("rollback", "tiny", "--to", "2", "--reason", "x"),
        '`idxflow promote tiny 2 --force --reason "…" --store',
        nothing,
        lambda here: here.change("promote", "tiny", "2", "--force", "--reason", "…"),
    ),
    "rollback: before the first": Case(
        lambda here: here.change("rollback", "tiny", "--reason", "x"),
        "`idxflow promote tiny NUMBER --force --reason … --store",
        nothing,
        lambda here: here.change("promote", "tiny", "2", "--force", "--reason", "…"),
    ),
    "registry: no time": Case(
        lambda here: here.run("registry", "at", "tiny", "yesterday"),
        "use one of these forms",
        nothing,
        lambda here: here.run("registry", "at", "tiny", "2026-05-01"),
    ),
    "verify: no such data set": Case(
        lambda here: here.run("verify", "other"), "give one of these", nothing, lambda here: here.run("verify", "tiny")
    ),
    "run: one's own data set by its name": Case(
        lambda here: here.run("run", "tiny"),
        "give its manifest: --dataset-file FILE",
        lambda here: blobs_dataset(here.folder),
        lambda here: Request(dataset_file=str(here.folder / "tiny.toml"), store=str(here.ready)).resolve(),
    ),
    "status: no such data set": Case(
        lambda here: here.run("status", "other"), "give one of these", nothing, lambda here: here.run("status", "tiny")
    ),
    "up: a host that is no name": Case(
        lambda here: checked_names(["http://x"]),
        "give a host name",
        nothing,
        lambda here: checked_names(["prefect.example.org"]),
    ),
    "a folder that was removed": Case(
        lambda here: (here.mine.mkdir(), os.chdir(here.mine), here.mine.rmdir(), here.run("datasets", store=False)),
        "cd to another",
        lambda here: os.chdir(here.folder),
        lambda here: here.run("datasets", store=False),
    ),
    "up: an auth string of another form": Case(
        lambda here: (here.patch.setenv(AUTH, "secret"), auth_string(here.folder)),
        "or unset it, and one is made",
        lambda here: here.patch.delenv(AUTH),
        lambda here: auth_string(here.folder),
    ),
    "up: a kept auth string of another form": Case(
        lambda here: (here.patch.delenv(AUTH, raising=False), auth_string(here.write("auth-string", b"x").parent)),
        "auth-string to be of the form user:password, found no colon in it; correct it, or remove it",
        lambda here: (here.folder / "auth-string").unlink(),
        lambda here: auth_string(here.folder),
    ),
    "a server that wants an auth string": Case(
        lambda here: protected(here),
        "put it into the environment variable PREFECT_API_AUTH_STRING",
        nothing,
        lambda here: protected(here, "me:secret"),
    ),
    "up: what dies again and again": Case(
        lambda here: kept_alive(here), "/log names, then start again", lambda here: here.write("ready", b"")
    ),
    "up: a schedule that never comes due": Case(
        lambda here: scheduled(here, "0 3 31 2 *"),
        "correct the schedule there",
        nothing,
        lambda here: scheduled(here, "0 3 28 2 *"),
    ),
    "up: another database": Case(
        lambda here: checked_database("mysql://db"),
        "give one that does",
        nothing,
        lambda here: checked_database("postgresql+asyncpg://me@db/prefect"),
    ),
    "up: a password in the command": Case(
        lambda here: checked_database("postgresql+asyncpg://me:secret@db/prefect"),
        "put the whole URL into PREFECT_SERVER_DATABASE_CONNECTION_URL",
        nothing,
        lambda here: checked_database(None),
    ),
    "watch: for no data set": Case(
        lambda here: _inbox(Wanted(here.folder, None, None)),
        "give one of them",
        nothing,
        lambda here: _inbox(Wanted(here.folder, "mnist", None)),
    ),
    "watch: a marker in a folder": Case(
        lambda here: _inbox(Wanted(here.folder, "mnist", None, marker="a/done")),
        "give its name alone",
        nothing,
        lambda here: _inbox(Wanted(here.folder, "mnist", None, marker="done")),
    ),
    "watch: no such folder": Case(
        lambda here: _inbox(Wanted(here.mine, "mnist", None)), "make the folder", lambda here: here.mine.mkdir()
    ),
}


def fitted(here: Here, validation_fraction: float, rows: int = 3, **more: Any) -> np.ndarray:
    """Choose which of so many training rows are held out."""
    here.set(train_images=IMAGES[:rows], train_labels=LABELS[:rows])
    dataset = catalog.read(here.manifest())
    config = training_config(dataset, overrides={"validation_fraction": validation_fraction, **more})
    return holdout.choose(dataset, here.decode().record, config)


RECORD = "mine/ledger/underway/1.json"
VERSION = "tiny/registry/versions/00000002.json"


def under_way(here: Here) -> list[Any]:
    """Look for runs whose process is gone, where a link stands for the file of one."""
    record = here.folder / "store" / RECORD
    if not record.parent.exists():
        record.parent.mkdir(parents=True)
        record.symlink_to("nowhere")
    return list(underway.abandoned(Store(here.folder / "store"), "mine"))


def cut(here: Here) -> None:
    assert here.own
    here.record(2).weights.chmod(0o644)
    here.record(2).weights.write_bytes(b"")


def exchange_weights(here: Here) -> None:
    """Give version 2 the weights of version 1, as somebody does who knows how."""
    assert here.own
    model, other = here.record(2), here.record(1)
    model.weights.unlink()
    shutil.copy(other.weights, model.weights)
    reseal(model.folder)


def change_version(here: Here) -> None:
    assert here.own
    path = here.ready / VERSION
    shutil.copy(path, here.folder / "backup")
    path.write_bytes(sealed(read_json(path) | {"weights_digest": "0" * 64}))


def shown(here: Here) -> None:
    here.run("registry", "show", "mine", "--store", str(here.folder / "store"), store=False)


def compared(here: Here, scored: SplitName) -> object:
    """Compare both versions on the training rows, where they are scored on those or on others."""
    store, dataset = here.own, blobs_dataset(here.folder)
    rows, train = split(store, dataset, scored), split(store, dataset, "train")
    champion, score = here.record(1), evaluate.fn(store, dataset, here.record(1), rows).record
    candidate = Candidate(here.record(2), evaluate.fn(store, dataset, here.record(2), rows).record, train, train)
    return compare(dataset, candidate, (Champion(Registry(store, "tiny").version(1), champion), score))


def protected(here: Here, auth: str = "") -> None:
    """Ask a server that wants the auth string me:secret, where Prefect is configured with `auth`."""

    def version(exchange: Exchange) -> None:
        known = exchange.request.headers.get("authorization") == f"Basic {b64encode(b'me:secret').decode()}"
        (whole_body(b"3") if known else status(401))(exchange)

    with FaultServer({"/api/health": whole_body(b"true"), "/api/admin/version": version}) as other:
        where = address("127.0.0.1", None, other.url("/api"))
        with temporary_settings({PREFECT_API_AUTH_STRING: auth}):
            assert is_up(where, known_auth_string(where, here.folder))


def kept_alive(here: Here) -> None:
    """Keep alive what needs a file `ready` until it is there, or is given up."""
    program = "test -e ready || { echo ValueError: expected a file ready; exit 3; }; touch started; exec sleep 600"
    command = Command("server", ("bash", "-c", program), os.environ, here.folder, here.folder / "log")
    service = Service(command, itertools.count().__next__)
    service.start()
    try:
        while not (here.folder / "started").exists():
            service.revive()
            time.sleep(0.01)
    finally:
        service.stop(5)


def scheduled(here: Here, cron: str) -> object:
    plan = {"deployments": [{"name": "mine", "schedules": [{"cron": cron}]}]}
    return read_plan(here.write("prefect.yaml", json.dumps(plan).encode()))


def destination(here: Here, path: str | Path) -> object:
    return output.destination("--out", here.folder / path, (".png",), Store(here.ready))


OF_OTHERS = {
    "expectations.check": "test_check",
    "flows.announce": "test_watch",
    "flows.cli:_called": "test_dying_api",
    "flows.console": "test_full_output",
    "flows.figures": "test_reports_cli",
    "flows.inbox": "test_watch",
    "flows.job:_arrived": "test_operated",
    "flows.job:_now": "test_clock",
    "flows.job:refuse_if_below_floor": "test_retrain",
    "flows.output:_give_up": "test_full_output",
    "flows.reports:_show": "test_reports_cli",
    "flows.runs": "test_reports_cli",
    "flows.service.client:_found": "test_surroundings",
    "flows.service.client:_is_up": "test_surroundings",
    "flows.service.configuration": "test_surroundings",
    "flows.service.database": "test_full_disk",
    "flows.service.deployments:_deploy": "test_deployments",
    "flows.service.temporary": "test_temporary_server",
    "flows.service.up": "test_up",
    "flows.watch": "test_full_disk",
    "storage.arrays": "test_schema_damage",
    "storage.arrivals": "test_watch",
    "storage.ledger:_record": "test_index",
    "storage.parquet": "test_bit_rot",
    "storage.registry": "test_registry",
    "storage.store": "test_store",
    "tasks.confirm": "test_confirm",
    "tasks.evaluate:_check_fit": "test_evaluate",
    "tasks.evaluate:_digest": "test_evaluate",
    "tasks.evaluate:evaluate_into": "test_bit_rot",
    "tasks.export": "test_export",
    "tasks.fetch:_make_sure_it_fits": "test_full_disk",
    "tasks.history": "test_train",
    "tasks.network": "test_evaluate",
    "tasks.normalize:check_labels": "test_evaluate",
    "tasks.origins": "test_folders",
    "tasks.pictures": "test_predict_cli",
    "tasks.predict": "test_predict",
    "tasks.scaling": "test_hostile_store",
    "tasks.train:_enough_memory": "test_train",
}
"""The test file that provokes the refusals of a module, or of one function of it, where none of the cases does."""

NOT_YET = {
    # A server that answers with an error: its log says what there is to do.
    "flows.service.client:asked",
    # What cannot come about while the ledger's lock works.
    "storage.ledger:append",
    # A defect of idxflow, to be reported.
    "tasks.rendering:_within",
}
"""What no test does yet that the message tells to do. This list is only to become shorter."""


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a champion of `tiny`."""
    folder = tmp_path_factory.mktemp("ready")
    store = Store(folder / "store")
    store.prepare()
    registered(store, blobs_dataset(folder), epochs=1)
    registered(store, blobs_dataset(folder), promote=False, epochs=1, seed=2)
    return store.root


@pytest.fixture
def here(tmp_path: Path, ready: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    found = Here(tmp_path, ready, monkeypatch)

    def note(error: IdxflowError, *arguments: Any) -> None:
        frame = sys._getframe(1)
        while frame.f_locals.get("self") is error and frame.f_back:
            frame = frame.f_back
        MADE.add((frame.f_code.co_filename, frame.f_lineno))
        found.made.append(error)
        Exception.__init__(error, *arguments)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IDXFLOW_SOURCE", raising=False)
    monkeypatch.setattr(IdxflowError, "__init__", note, raising=False)
    return found


MADE: set[tuple[str, int]] = set()
"""File and line where the cases have made errors."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_an_error_tells_to_do_leads_on(here: Here, case: Case):
    with pytest.raises(IdxflowError) as caught:
        case.provoke(here)
    assert case.says in str(caught.value)
    case.mend(here)
    (case.then or case.provoke)(here)


@dataclass(frozen=True)
class Refusal:
    """A place in the code where an error of the project is made."""

    file: Path
    name: str
    """`module:function`."""
    lines: range


def refusals() -> Iterator[Refusal]:
    for package in ("flows", "tasks", "expectations", "storage"):
        for file in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            yield from _refusals(file, module, ast.parse(file.read_text(encoding="utf-8")), "")


def _refusals(file: Path, module: str, node: ast.AST, function: str) -> Iterator[Refusal]:
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in ERRORS and child.args:
            yield Refusal(file, f"{module}:{inner}", range(child.lineno, (child.end_lineno or child.lineno) + 1))
        yield from _refusals(file, module, child, inner)


def test_every_refusal_of_the_code_is_a_case_here_or_of_another_test():
    """Runs after the cases: in one process, in the order of the file."""
    if not MADE:
        pytest.fail("run the whole file: the cases note the places where they make errors")
    other = {refusal.name for refusal in refusals() if not _made(refusal)}
    known = NOT_YET | {name for name in other if name in OF_OTHERS or name.split(":")[0] in OF_OTHERS}
    assert sorted(other - known) == [], "new refusals: do here what they tell to do, or name the test that does"
    # Some are made here, too, where no server of the developer answers.
    named = {name for refusal in refusals() for name in (refusal.name, refusal.name.split(":")[0])}
    assert OF_OTHERS.keys() - named == set()
    assert NOT_YET - other == set(), "these are done now: take them off the list"
    assert set(OF_OTHERS.values()) <= {file.stem for file in (ROOT / "tests").rglob("test_*.py")}


def _made(refusal: Refusal) -> bool:
    return any(Path(file) == refusal.file and line in refusal.lines for file, line in MADE)
