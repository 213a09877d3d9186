"""What an error tells to do is done, and leads on: the same call works then, or the one that is named.

Each refusal of the code is a place where one of the project's errors is made (`tests.support.refusals`). `CASES`
provokes it; the tests of those that need a server, a broken disk or a whole run are marked `remedies` with the place.
"""

from __future__ import annotations

import bz2
import ctypes
import dataclasses
import errno
import gzip
import itertools
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import webbrowser
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows import retrain, run
from flows.arrival_runs import DEPLOYMENT, connected
from flows.commands.cli import run_command
from flows.commands.destination import destination, write
from flows.commands.report import _open
from flows.commands.several import chosen
from flows.inbox import ArrivalFolder
from flows.run import Request, _arrived
from flows.service.application import AUTH
from flows.service.deployments import read_plan
from flows.service.processes import Command, Service
from flows.service.server import address, auth_string, checked_database, checked_names, is_up, known_auth_string
from flows.service.supervisor import ZOMBIE_VARIABLE, Supervisor, UpOptions, zombie_seconds
from flows.several import by_name
from flows.watcher import WatchOptions, _inbox, _make_sure_it_fits
from storage import arrivals, underway
from storage.arrivals import Arrivals
from storage.datasets import catalog
from storage.datasets.catalog import DEFAULT_FILES
from storage.datasets.own_files import Layout, manifest_of
from storage.datasets.training import training_config
from storage.errors import IdxflowError
from storage.files import read_json, sealed
from storage.formats import idx, parquet
from storage.formats.history import read_history
from storage.ledger import Ledger
from storage.objects.folder import Folder
from storage.objects.protocol import Listing
from storage.records import Done, Split, SplitName, TrainedModel
from storage.registry import Registry
from storage.store import ENTRY, Store
from tasks.decode import decode
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.gate.evidence import compare
from tasks.gate.judging import Candidate, Incumbent
from tasks.model import classifier, holdout, network, scaling
from tasks.model.labels import check_labels
from tasks.model.scaling import Statistics
from tasks.normalize import normalize
from tasks.serving import image_files, picture
from tasks.serving.predict import Model, load_champion
from tasks.sources.origins import payload_sha256
from tests.conftest import bars
from tests.support import refusals
from tests.support.archives import write_archives
from tests.support.blobs import SHAPE, blobs, blobs_dataset, registered
from tests.support.commands import idxflow
from tests.support.faultserver import Answer, Exchange, FaultServer, status
from tests.support.faultserver import cut as broken_off
from tests.support.faultserver import good as whole_body
from tests.support.models import split
from tests.support.runs import run_without_prefect
from tests.support.servers import clean_environment
from tests.support.tampering import reseal

GOOD = bars(120, 30, 3, (9, 7))
MANIFEST = 'name = "mine"\nclasses = ["0", "1", "2"]\nimage_shape = [9, 7]\nsource = "mine"\n'


@dataclass
class Here:
    """An empty folder to be in, a champion of `tiny` to ask, and what has been refused."""

    folder: Path
    ready: Path
    patch: pytest.MonkeyPatch
    errors: list[IdxflowError] = field(default_factory=list)

    @property
    def mine(self) -> Path:
        return self.folder / "mine"

    @property
    def model(self) -> Model:
        return load_champion("tiny", self.ready)

    def set(self, **changes: np.ndarray) -> Path:
        """Write the good set, or one with changes; `train_images` stands for `train-images`."""
        return write_archives(self.mine, GOOD | {role.replace("_", "-"): array for role, array in changes.items()})

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
        run_in_store = {"dataset_file": str(self.folder / "mine.toml"), "to": retrain.to_validation, **parameters}
        outcome = run_without_prefect(store, **run_in_store)
        if outcome["error"]:
            raise next(error for error in reversed(self.errors) if str(error) == outcome["error"]["sentence"])

    def run(self, *words: str, store: bool = True) -> None:
        """Run a command, in the store that has a champion."""
        if run_command([*words, *(["--store", str(self.ready)] if store else [])]):
            raise self.errors[-1]

    def train(self, **parameters: Any) -> None:
        """Do what `idxflow run --dataset-file mine.toml` does up to the decision, without Prefect."""
        self.set()
        self.manifest("[floors]\naccuracy = 0\nclass_recall = 0\n")
        self.validate(to=retrain.to_decision, **parameters)

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

    def train_again(self, seed: int = 2) -> None:
        """Do what trained version 2, or another."""
        registered(self.own, blobs_dataset(self.folder), promote=False, epochs=1, seed=seed)

    def model_of(self, number: int) -> Model:
        store = Store(self.ready)
        return Model(store, Registry(store, "tiny").version(number))

    def save(self, name: str, pixels: np.ndarray, **how: Any) -> Path:
        Image.fromarray(pixels).save(self.folder / name, **how)
        return self.folder / name

    def read(self, name: str, **wish: Any) -> np.ndarray:
        return np.concatenate(
            list(image_files.read(self.folder / name, image_files.ImageOptions(SHAPE, **wish), lambda _: None))
        )

    def write_in(self, name: str, data: bytes) -> None:
        """Write a file of a store that has nothing else."""
        path = self.folder / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

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


def payload(data: bytes | None = None) -> Act:
    """Measure what a gzip file holds, which is written before."""
    return lambda here: (data and here.write("x", data), payload_sha256(here.folder / "x", len(FILE)))


def failing(code: int) -> Callable[..., None]:
    """Return what the system does with a disk that is broken (EIO) or full (ENOSPC)."""

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def shell(line: str) -> Act:
    return lambda here: subprocess.run(["bash", "-c", line], cwd=here.folder, check=False, capture_output=True)


def normalized(change: Callable[[Path], object] | None = None) -> Act:
    """Decode a set, and read the statistics of its pixels; `change` their file before, and seal it."""

    def act(here: Here) -> None:
        here.set()
        here.manifest()
        here.decode()
        (file,) = here.folder.glob("store/mine/4-normalization/*/normalization.npz")
        _changed(file, change)
        scaling.read(file, 63)

    return act


def pixels_read(change: Callable[[Path], object] | None = None) -> Act:
    """Decode a set, and read the pixels of its training rows; `change` their file before, and seal it."""

    def act(here: Here) -> None:
        here.set()
        here.manifest()
        file = here.decode().record.file
        _changed(file, change)
        parquet.read(file)

    return act


def _changed(file: Path, change: Callable[[Path], object] | None) -> None:
    if change:
        file.chmod(0o644)
        change(file)
        (file.parent / ENTRY).chmod(0o644)
        reseal(file.parent)


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    def rewrite(path: Path) -> None:
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(pq.read_metadata(path).metadata), path)

    return rewrite


def removed(here: Here) -> None:
    """Remove what the last message says to remove, before a run."""
    match = re.search(r"remove (/\S+), then run again", str(here.errors[-1]))
    assert match
    shutil.rmtree(match[1])


def removed_and_trained(here: Here) -> None:
    removed(here)
    here.train_again()


def further(act: Act, message: str) -> Act:
    """Do what comes to the next refusal, which says something else."""

    def act_further(here: Here) -> None:
        with pytest.raises(IdxflowError, match=re.escape(message)):
            act(here)

    return act_further


def as_any_user(act: Act) -> Act:
    """Act without root's right to read and write what nobody may (CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."""

    def plainly(here: Here) -> None:
        library, head, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
        assert library.capget(head, sets) == 0
        before = sets[0]
        sets[0] &= ~(1 << 1 | 1 << 2)
        assert library.capset(head, sets) == 0
        try:
            act(here)
        finally:
            sets[0] = before
            assert library.capset(head, sets) == 0

    return plainly


def arriving_again(train: int) -> Case:
    """Another set, of so many training rows, is sent to a folder whose manifest names the digests of the first."""
    return Case(
        lambda here: (
            arrived(here),
            here.manifest(text=manifest_of(here.mine)),
            # Of fewer test rows: the limits of their sizes are not what is met.
            write_archives(here.mine, bars(train, 15, 3, (9, 7))),
            take_arrivals(here),
        ),
        "`idxflow manifest FOLDER --no-digests` writes none",
        lambda here: here.manifest(text=manifest_of(here.mine, digests=False)),
        lambda here: take_arrivals(here),
    )


LABELS, IMAGES = GOOD["train-labels"], GOOD["train-images"]
FILE = idx.encode(IMAGES)
PACKED = gzip.compress(FILE, mtime=0)
COLOUR = np.repeat(IMAGES[..., None], 3, axis=3)
LISTDIR, FSYNC = os.listdir, os.fsync
ELSEWHERE = address("127.0.0.1", None, "http://127.1.2.3:9/api")
"""What counts as another machine, where nothing listens."""
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
    "manifest: pictures": Case(only_pictures, "storage.formats.idx.encode(array) gives the bytes of one", pngs_as_idx),
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
    "manifest: labels of no number": Case(
        changed(train_labels=np.where(LABELS == 1, np.nan, LABELS).astype(">f4")),
        "give each such row the number of its class",
        lambda here: here.set(train_labels=np.nan_to_num(np.where(LABELS == 1, np.nan, LABELS), nan=1).astype("u1")),
    ),
    "manifest: a base that the labels do not have": Case(
        lambda here: (here.set(), manifest_of(here.mine, layout=Layout(label_base=1))),
        "remove --label-base",
        nothing,
        manifest(),
    ),
    "manifest: images as labels": Case(changed(train_labels=IMAGES), "give the archive of the labels", good),
    "manifest: labels of several columns": Case(
        changed(train_labels=WIDE, test_labels=WIDE_TEST),
        "--label-column 0",
        nothing,
        manifest(layout=Layout(label_column=0)),
    ),
    "manifest: a column that is not there": Case(
        lambda here: (
            here.set(train_labels=WIDE, test_labels=WIDE_TEST),
            manifest_of(here.mine, layout=Layout(label_column=2)),
        ),
        "choose another --label-column than 2, below 2",
        nothing,
        manifest(layout=Layout(label_column=1)),
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
    "labels that count up from 299": Case(
        decoded(train_labels=LABELS.astype(">i2") + 299, test_labels=GOOD["test-labels"].astype(">i2") + 299),
        "(label_base = N for N, N+1, …)",
        declares("label_base = 299\n"),
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
    "rows and columns swapped": Case(
        decoded(train_images=IMAGES.swapaxes(1, 2), test_images=GOOD["test-images"].swapaxes(1, 2)),
        "or set transpose = true there",
        declares("transpose = true\n"),
    ),
    "rows and columns that are not swapped": Case(
        decoded("transpose = true\n"), "or remove transpose there", declares("")
    ),
    "the other ink": Case(
        validated('ink = "dark"\n'), "if this data is intended, change ink in", declares('ink = "bright"\n')
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
        lambda here: write_archives(here.folder / "other", GOOD),
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
        lambda here: write_archives(here.folder / "other", GOOD),
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
    "xz": Case(of_file(lzma.compress(FILE)), "unpack it: xz -dc OLD > NEW", lambda here: here.write("x", FILE)),
    "bzip2": Case(of_file(bz2.compress(FILE)), "unpack it: bzip2 -dc OLD > NEW", lambda here: here.write("x", FILE)),
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
    "labels written in two ways": Case(
        reads("labels = [1, 2, 3]\nlabel_base = 1\n"), "remove one of them", declares("label_base = 1\n")
    ),
    "a key that is missing": Case(
        reads("", MANIFEST.replace('name = "mine"\n', "")), "found nothing; add it", declares("")
    ),
    "a source that is no folder": Case(
        reads("", MANIFEST.replace('source = "mine"', 'source = "~nobody-of-that-name"')),
        "expected source to be a folder",
        declares(""),
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
        "choose one of these",
        nothing,
        lambda here: training_config(catalog.find("digits"), "fast"),
    ),
    "more poolings than an image has room for": Case(
        lambda here: training_config(catalog.find("digits"), overrides={"conv": [2, 2, 2, 2]}),
        "expected conv to be at most 3 numbers for images of 8 × 8 pixels, because the pooling after each convolution "
        "halves both sides; found 4; remove some",
        nothing,
        lambda here: training_config(catalog.find("digits"), overrides={"conv": [2, 2, 2]}),
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
    "momentum of an optimizer without": Case(
        lambda here: Request(settings=("optimizer=adam", "momentum=0.8")).resolve(),
        "remove momentum",
        nothing,
        lambda here: Request(settings=("optimizer=adam",)).resolve(),
    ),
    "an exponential schedule to zero": Case(
        lambda here: Request(settings=("schedule=exponential", "final_share=0")).resolve(),
        "raise it",
        nothing,
        lambda here: Request(settings=("schedule=exponential", "final_share=0.1")).resolve(),
    ),
    "a warm-up without end": Case(
        lambda here: Request(settings=("warmup_epochs=5", "epochs=5")).resolve(),
        "raise epochs",
        nothing,
        lambda here: Request(settings=("warmup_epochs=5", "epochs=6")).resolve(),
    ),
    "images shifted out of sight": Case(
        lambda here: here.train(shift=50),
        "choose a smaller one, such as --set shift=",
        nothing,
        lambda here: here.train(shift=0.7, epochs=1),
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
    # --- several data sets ----------------------------------------------------------------------------------------
    "--all and names": Case(
        lambda here: chosen(["mnist"], [], True), "leave one of them out", nothing, lambda here: chosen([], [], True)
    ),
    "names and manifests": Case(
        lambda here: chosen(["digits", "mnist"], ["mine.toml"], False),
        "or give --all with the manifests",
        nothing,
        lambda here: chosen([], ["mine.toml"], True),
    ),
    "timings of several": Case(
        lambda here: chosen(["digits", "mnist"], [], False, timings=True),
        "leave --timings out",
        nothing,
        lambda here: chosen(["digits", "mnist"], [], False),
    ),
    "a data set twice": Case(
        lambda here: (here.manifest(), by_name([Request(dataset_file=file) for file in ("mine.toml", "./mine.toml")])),
        "found mine twice, as mine.toml and ./mine.toml; leave one of them out",
        nothing,
        lambda here: by_name([Request(dataset_file="mine.toml")]),
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
        lambda here: here.run("verify", "--store", "https://host/x", store=False),
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
    "predict: WebP": Case(
        lambda here: (here.save("x.webp", ONE), here.read("x.webp")),
        "convert it to one of these",
        lambda here: here.save("x.png", opened("x.webp")),
        lambda here: here.read("x.png"),
    ),
    "predict: a picture of too many bytes": Case(
        lambda here: (here.patch.setattr(picture, "MAX_BYTES", 20), here.read(here.save("x.png", ONE).name)),
        "scale it down",
        lambda here: here.patch.undo(),
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
        ", then run again",
        lambda here: (shutil.rmtree(here.record(2).entry.folder), here.train_again()),
        lambda here: classifier.predict(here.record(2), ONE[None]),
    ),
    "answers about other rows": Case(
        lambda here: compared(here, scored="test"),
        "run again to score both",
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
        "choose another",
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
        lambda here: output_file(here, "x.gif"), "choose such a name", nothing, lambda here: output_file(here, "x.png")
    ),
    "a figure in a folder that is not there": Case(
        lambda here: output_file(here, "new/x.png"), "make it", lambda here: (here.folder / "new").mkdir()
    ),
    "a figure in the store": Case(
        lambda here: output_file(here, here.ready / "x.png"),
        "choose another place",
        nothing,
        lambda here: output_file(here, "x.png"),
    ),
    "a figure that is a folder": Case(
        lambda here: ((here.folder / "x.png").mkdir(exist_ok=True), output_file(here, "x.png")),
        "choose another name",
        nothing,
        lambda here: output_file(here, "y.png"),
    ),
    "a name that is too long": Case(
        lambda here: write(here.folder / ("x" * 300), b""),
        "choose another",
        nothing,
        lambda here: write(here.folder / "x", b""),
    ),
    "a figure over another file": Case(
        lambda here: output_file(here, here.write("x.png", b"text")),
        "or remove it",
        lambda here: (here.folder / "x.png").unlink(),
        lambda here: output_file(here, "x.png"),
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
        lambda here: (here.set(), here.manifest(), here.validate(), version_shown(here)),
        "`idxflow run --dataset-file FILE --store",
        lambda here: here.train(epochs=1),
        lambda here: version_shown(here),
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
        "or unset it, and one is generated",
        lambda here: here.patch.delenv(AUTH),
        lambda here: auth_string(here.folder),
    ),
    "up: a kept auth string of another form": Case(
        lambda here: (here.patch.delenv(AUTH, raising=False), auth_string(here.write("auth-string", b"x").parent)),
        "auth-string to be of the form user:password, found no colon in it; correct it, or remove it",
        lambda here: (here.folder / "auth-string").unlink(),
        lambda here: auth_string(here.folder),
    ),
    "a server that requires an auth string": Case(
        lambda here: protected(here),
        "put it into the environment variable PREFECT_API_AUTH_STRING",
        nothing,
        lambda here: protected(here, "me:secret"),
    ),
    "up: what dies again and again": Case(
        lambda here: kept_alive(here), "/log names, then start again", lambda here: here.write("ready", b"")
    ),
    "up: what dies again and again of its database": Case(
        lambda here: (here.write("prefect.db", b"no database"), kept_alive_by_up(here)),
        "prefect.db, Prefect's database, is broken (it is not an SQLite database); move it aside",
        lambda here: moved_aside(here),
        lambda here: kept_alive_by_up(here),
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
        lambda here: _inbox(WatchOptions(here.folder, None, None)),
        "give one of them",
        nothing,
        lambda here: _inbox(WatchOptions(here.folder, "mnist", None)),
    ),
    "watch: a marker in a folder": Case(
        lambda here: _inbox(WatchOptions(here.folder, "mnist", None, marker="a/done")),
        "give its name alone",
        nothing,
        lambda here: _inbox(WatchOptions(here.folder, "mnist", None, marker="done")),
    ),
    "watch: no such folder": Case(
        lambda here: _inbox(WatchOptions(here.mine, "mnist", None)), "create the folder", lambda here: here.mine.mkdir()
    ),
    # --- files of the store ---------------------------------------------------------------------------------------
    "an entry of other arrays": Case(
        normalized(lambda path: np.savez(path, mean=np.zeros(63))), "remove ", removed, normalized()
    ),
    "an entry whose arrays are packed": Case(
        normalized(lambda path: np.savez_compressed(path, mean=np.zeros(63), std=np.float64(1))),
        "remove ",
        removed,
        normalized(),
    ),
    "an entry whose arrays are of another type": Case(
        normalized(lambda path: np.savez(path, mean=np.zeros(63, "f4"), std=np.float64(1))),
        "remove ",
        removed,
        normalized(),
    ),
    "an entry whose arrays are none": Case(
        normalized(lambda path: path.write_bytes(b"PK")), "remove ", removed, normalized()
    ),
    "an entry without spread": Case(
        normalized(lambda path: scaling.write(path, Statistics(np.zeros(63), 0.0))), "remove ", removed, normalized()
    ),
    "a split that is no Parquet file": Case(
        pixels_read(lambda path: path.write_bytes(b"PAR1")), "remove ", removed, pixels_read()
    ),
    "a split of other columns": Case(
        pixels_read(rewritten(lambda table: table.drop_columns(["label"]))), "remove ", removed, pixels_read()
    ),
    "a split of other rows": Case(
        pixels_read(rewritten(lambda table: table.slice(1))), "remove ", removed, pixels_read()
    ),
    "a model of other weights than finite ones": Case(
        lambda here: (spoiled(here, "weights.npz", not_finite), classifier.predict(here.record(2), ONE[None])),
        "remove ",
        removed_and_trained,
        lambda here: classifier.predict(here.record(2), ONE[None]),
    ),
    "a model of no architecture": Case(
        lambda here: (spoiled(here, "architecture.json", empty), classifier.predict(here.record(2), ONE[None])),
        "remove ",
        removed_and_trained,
        lambda here: classifier.predict(here.record(2), ONE[None]),
    ),
    "a model of an unknown activation": Case(
        lambda here: (
            spoiled(here, "architecture.json", unknown_activation),
            classifier.predict(here.record(2), ONE[None]),
        ),
        "remove ",
        removed_and_trained,
        lambda here: classifier.predict(here.record(2), ONE[None]),
    ),
    "a model whose epochs cannot be read": Case(
        lambda here: (
            spoiled(here, "history.jsonl", no_text),
            read_history(here.record(2).history),
        ),
        "remove ",
        removed_and_trained,
        lambda here: read_history(here.record(2).history),
    ),
    "predict: a damaged version": Case(
        lambda here: (cut(here), here.run("predict", "tiny", str(here.save("x.png", ONE)), "--version", "2")),
        "; train it again",
        lambda here: here.train_again(),
        lambda here: here.run("predict", "tiny", "x.png", "--version", "2"),
    ),
    "a split of fewer rows than its entry has": Case(
        lambda here: (fewer_rows(here), scored(here)), "remove ", removed, lambda here: scored(here)
    ),
    "a link in the place of a part of the store": Case(
        lambda here: (linked(here), here.run("registry", "show", "tiny")),
        "move what it points to there",
        lambda here: ((here.ready / "tiny").unlink(), (here.folder / "elsewhere").rename(here.ready / "tiny")),
        lambda here: here.run("registry", "show", "tiny"),
    ),
    "a store below a file": Case(
        lambda here: Store(here.write("file", b"") / "store").prepare(),
        "choose another with --store",
        nothing,
        lambda here: Store(here.folder / "store").prepare(),
    ),
    "a store that may not be written": Case(
        lambda here: (
            # Root may write everywhere, so that this is what the system says.
            here.patch.setattr(os, "access", lambda path, mode: path != here.folder / "store"),
            Store(here.folder / "store").prepare(),
        ),
        "choose another with --store",
        nothing,
        lambda here: Store(here.folder / "other").prepare(),
    ),
    "a folder of the store that may not be written": Case(
        as_any_user(
            lambda here: (
                closed(here, here.folder / "store" / "mine" / "ledger" / "runs", 0o555),
                Ledger(Store(here.folder / "store"), "mine").append("runs", "run", {}),
            )
        ),
        "free space or correct the permissions there",
        lambda here: (here.folder / "store/mine/ledger/runs").chmod(0o755),
        as_any_user(lambda here: Ledger(Store(here.folder / "store"), "mine").append("runs", "run", {})),
    ),
    "an entry that may not be read": Case(
        as_any_user(
            lambda here: (
                here.own,
                [path.chmod(0) for path in here.ready.glob("tiny/5-models/*/weights.npz")],
                here.model_of(2),
            )
        ),
        "check the disk and the permissions, then run again",
        lambda here: [path.chmod(0o644) for path in here.ready.glob("tiny/5-models/*/weights.npz")],
        as_any_user(lambda here: here.model_of(2)),
    ),
    "a record that the ledger has already": Case(
        lambda here: twice_recorded(here), "run again", nothing, lambda here: recorded(here)
    ),
    "a record of the ledger that is damaged": Case(
        lambda here: (here.write_in(LEDGER, b"{}"), Ledger(Store(here.folder / "store"), "mine").read("runs")),
        "or move it out of the ledger",
        lambda here: (here.folder / "store" / LEDGER).rename(here.folder / "moved"),
        lambda here: Ledger(Store(here.folder / "store"), "mine").read("runs"),
    ),
    "registry: a version without a number": Case(
        lambda here: (
            here.own,
            (here.ready / VERSION).with_name("best.json").write_text("{}"),
            here.train_again(seed=3),
        ),
        "move it out of the registry",
        lambda here: (here.ready / VERSION).with_name("best.json").rename(here.folder / "best.json"),
        lambda here: here.train_again(seed=3),
    ),
    # --- folders that archives arrive in --------------------------------------------------------------------------
    "watch: a link to an archive": Case(
        lambda here: (arrived(here), as_link(here.mine / DEFAULT_FILES["test-labels"]), take_arrivals(here)),
        "copy the archive itself there",
        lambda here: shutil.move(here.folder / "elsewhere", here.mine / DEFAULT_FILES["test-labels"]),
        lambda here: take_arrivals(here),
    ),
    "watch: a larger archive than the published one": arriving_again(train=4_000),
    "watch: another archive than the published one": arriving_again(train=110),
    "watch: a transfer that has not ended": Case(
        lambda here: (arrived(here), (here.mine / f"{DEFAULT_FILES['test-labels']}.part").touch(), take_arrivals(here)),
        "or remove the partial file",
        lambda here: (here.mine / f"{DEFAULT_FILES['test-labels']}.part").unlink(),
        lambda here: take_arrivals(here),
    ),
    "watch: one file of a pair": Case(
        lambda here: (arrived(here), here.set(test_labels=GOOD["test-labels"][:-1]), take_arrivals(here)),
        "copy the other file, too",
        lambda here: here.set(test_labels=GOOD["test-labels"][:-1], test_images=GOOD["test-images"][:-1]),
        lambda here: take_arrivals(here),
    ),
    "watch: a folder that is gone": Case(
        lambda here: (arrived(here), (inbox := inbox_of(here)), shutil.rmtree(here.mine), inbox.contents()),
        "create it again",
        lambda here: here.mine.mkdir(),
        lambda here: inbox_of(here).contents(),
    ),
    "watch: an archive that may not be read": Case(
        as_any_user(lambda here: (arrived(here), next(here.mine.iterdir()).chmod(0), take_arrivals(here))),
        "correct its permissions",
        lambda here: [path.chmod(0o644) for path in here.mine.iterdir()],
        as_any_user(lambda here: take_arrivals(here)),
    ),
    "a set that is in another store": Case(
        lambda here: _arrived(Arrivals(Store(here.folder / "other"), "mine"), a_set(here), "mine"),
        "with the same --store or IDXFLOW_STORE",
        nothing,
        lambda here: _arrived(Arrivals(Store(here.folder / "store"), "mine"), a_set(here), "mine"),
    ),
    "a set whose manifest is another one": Case(
        lambda here: (
            (arrival := a_set(here)),
            here.manifest(text=MANIFEST.replace('"mine"', '"other"', 1)),
            _arrived(Arrivals(Store(here.folder / "store"), "mine"), arrival, "mine"),
        ),
        "restore the manifest that the set was announced with",
        lambda here: here.manifest(),
        lambda here: _arrived(
            Arrivals(Store(here.folder / "store"), "mine"),
            Ledger(Store(here.folder / "store"), "mine").read("arrivals")[0]["arrival"],
            "mine",
        ),
    ),
    "watch: a folder whose names cannot be read": Case(
        lambda here: (arrived(here), here.patch.setattr(os, "listdir", failing(errno.EIO)), take_arrivals(here)),
        "check its disk",
        lambda here: here.patch.setattr(os, "listdir", LISTDIR),
        lambda here: take_arrivals(here),
    ),
    "watch: an archive that cannot be read to its end": Case(
        lambda here: (here.set(), copied_with(here, failing(errno.EIO))),
        "copy it again",
        nothing,
        lambda here: copied_with(here, os.read),
    ),
    "a payload that is cut": Case(
        payload(PACKED[:-9]), "its gzip stream is cut short", lambda here: here.write("x", PACKED), payload()
    ),
    "a payload that is damaged": Case(
        payload(PACKED[:30] + b"damaged" + PACKED[37:]),
        "its gzip stream is damaged",
        lambda here: here.write("x", PACKED),
        payload(),
    ),
    "a payload with more after it": Case(
        payload(PACKED + b"garbage"),
        "there is more after its gzip stream",
        lambda here: here.write("x", PACKED),
        payload(),
    ),
    "a payload that is too large": Case(
        payload(gzip.compress(bytes(10_000_000))),
        "it holds more than",
        lambda here: here.write("x", PACKED),
        payload(),
    ),
    "predict: a version of other weights": Case(
        lambda here: (
            change_version(here),
            here.run("predict", "tiny", str(here.save("x.png", ONE)), "--version", "2"),
        ),
        "restore its record in the registry from a backup",
        lambda here: shutil.copy(here.folder / "backup", here.ready / VERSION),
        lambda here: here.run("predict", "tiny", "x.png", "--version", "2"),
    ),
    "a proxy that no server can be asked through": Case(
        lambda here: look_for_server(here, ALL_PROXY="socks5://127.0.0.1:9"),
        "or unset it",
        nothing,
        lambda here: look_for_server(here),
    ),
    # --- runs and reports -----------------------------------------------------------------------------------------
    "report: of a champion that is not there": Case(
        lambda here: (here.set(), here.manifest(), here.validate(), run_in_store(here, "report", "mine", "champion")),
        "found none yet; run it: `idxflow run --dataset-file",
        lambda here: here.train(epochs=1),
        lambda here: run_in_store(here, "report", "mine", "champion"),
    ),
    "report: of no run": Case(
        lambda here: (
            *(here.set(), here.manifest(), here.validate()),
            *(shutil.rmtree(here.folder / "store/mine/ledger/runs"), run_in_store(here, "report", "mine")),
        ),
        "found none yet; run it: `idxflow run",
        lambda here: here.validate(),
        lambda here: run_in_store(here, "report", "mine"),
    ),
    "figures: images that are gone": Case(
        lambda here: (
            *(here.set(), here.manifest(), here.validate()),
            *(shutil.rmtree(here.folder / "store/mine/2-splits"), run_in_store(here, "figures", "mine")),
        ),
        "decodes them",
        lambda here: here.validate(),
        lambda here: run_in_store(here, "figures", "mine"),
    ),
    "suspects: of no audit": Case(
        lambda here: (here.set(), here.manifest(), here.validate(), run_in_store(here, "suspects", "mine")),
        "no run has had one; make one: `idxflow run --dataset-file FILE --store",
        lambda here: here.train(audit=True),
        lambda here: run_in_store(here, "suspects", "mine"),
    ),
    "figures: of no class": Case(
        lambda here: (
            here.set(train_labels=LABELS + 9),
            here.manifest(),
            suppressed(here.validate),
            run_in_store(here, "figures", "mine"),
        ),
        "correct the labels",
        lambda here: (here.set(), here.validate()),
        lambda here: run_in_store(here, "figures", "mine"),
    ),
    "report: no browser": Case(
        lambda here: (here.patch.setattr(webbrowser, "_tryorder", []), _open(here.folder / "page.html")),
        "set the environment variable BROWSER",
        lambda here: (here.patch.setattr(webbrowser, "_tryorder", None), here.patch.setenv("BROWSER", "true %s")),
        lambda here: _open(here.folder / "page.html"),
    ),
    "output that is full": Case(
        lambda here: printed_into(here, "/dev/full"),
        "free space, or redirect it",
        nothing,
        lambda here: printed_into(here, "out"),
    ),
    "a clock that starts in 1970": Case(
        lambda here: (here.patch.setattr(run, "datetime", clock(1970)), run._now()),
        "set it, for example with timedatectl, then run again",
        lambda here: here.patch.setattr(run, "datetime", clock(2026)),
        lambda here: run._now(),
    ),
    "predict: a picture that is too large": Case(
        lambda here: (here.patch.setattr(Image, "MAX_IMAGE_PIXELS", 60), here.save("x.png", ONE), here.read("x.png")),
        "scale it down",
        lambda here: here.save("x.png", ONE[::2, ::2]),
        lambda here: here.read("x.png", resize=True),
    ),
    "serve: a picture of too many pixels": Case(
        lambda here: (here.save("x.png", ONE), picture.read(Path("x.png").read_bytes(), "x.png", max_pixels=60)),
        "scale it down",
        lambda here: here.save("x.png", ONE[::2, ::2]),
        lambda here: picture.read(Path("x.png").read_bytes(), "x.png", max_pixels=60),
    ),
    "predict: a file that may not be read": Case(
        as_any_user(lambda here: (here.save("x.png", ONE).chmod(0), here.read("x.png"))),
        "correct its permissions",
        lambda here: (here.folder / "x.png").chmod(0o644),
        as_any_user(lambda here: here.read("x.png")),
    ),
    "export: a folder that may not be written": Case(
        as_any_user(
            lambda here: (
                closed(here, here.folder / "closed", 0o555),
                here.run("export", "tiny", "--format", "onnx", "--out", str(here.folder / "closed" / "new")),
            )
        ),
        "choose another",
        nothing,
        as_any_user(lambda here: here.run("export", "tiny", "--format", "onnx", "--out", str(here.folder / "new"))),
    ),
    "export: a disk that fills up": Case(
        lambda here: (
            here.patch.setattr(os, "fsync", failing(errno.ENOSPC)),
            here.run("export", "tiny", "--format", "onnx", "--out", str(here.folder / "new")),
        ),
        "No space left on device; free space there, or choose another --out",
        lambda here: here.patch.setattr(os, "fsync", FSYNC),
        lambda here: here.run("export", "tiny", "--format", "onnx", "--out", str(here.folder / "new")),
    ),
    "export: no onnx": Case(
        lambda here: (
            here.patch.setattr("importlib.metadata.version", lambda name: "0.9"),
            here.run("export", "tiny", "--format", "onnx", "--out", str(here.folder / "new")),
        ),
        "or choose keras or savedmodel",
        nothing,
        lambda here: here.run("export", "tiny", "--format", "keras", "--out", str(here.folder / "new")),
    ),
    "no room for an archive": Case(
        lambda here: (space(here, 10), here.set(), here.manifest(text=manifest_of(here.mine)), here.decode()),
        "free space there",
        lambda here: space(here, 1 << 40),
        lambda here: here.decode(),
    ),
    "watch: no room for a set": Case(
        lambda here: (space(here, 10), _make_sure_it_fits(here.folder, 11)),
        "free space there",
        lambda here: space(here, 1 << 40),
        lambda here: _make_sure_it_fits(here.folder, 11),
    ),
    "labels of no class, for training": Case(
        lambda here: (here.set(), here.manifest(), labels_checked(here)),
        "or the classes of the manifest",
        lambda here: here.manifest(text=MANIFEST.replace('"2"]', '"2", "3"]')),
        lambda here: labels_checked(here),
    ),
    "a model of other classes": Case(
        lambda here: scored(here, blobs_dataset(here.folder), classes=("a", "b")),
        "train one for this data set",
        nothing,
        lambda here: scored(here, blobs_dataset(here.folder)),
    ),
    # --- servers --------------------------------------------------------------------------------------------------
    "up: open without an auth string": Case(
        lambda here: up(here, "--host", "0.0.0.0", "--no-auth"),
        "expected no --no-auth with --host 0.0.0.0",
        nothing,
        further(lambda here: up(here, "--host", "0.0.0.0"), "start it there"),
    ),
    "up: an auth string and none": Case(
        lambda here: up(here, "--no-auth", **{AUTH: "me:secret"}),
        "expected no --no-auth if",
        nothing,
        further(lambda here: up(here), "start it there"),
    ),
    "up: a server elsewhere that is not there": Case(
        lambda here: up(here),
        "or give --port for one on this machine",
        nothing,
        further(lambda here: other_server(here), "free port at"),
    ),
    "up: a number of seconds that is none": Case(
        lambda here: (here.patch.setenv(ZOMBIE_VARIABLE, "1 h"), zombie_seconds()),
        "to be a number of seconds of at least",
        lambda here: here.patch.setenv(ZOMBIE_VARIABLE, "3600"),
        lambda here: zombie_seconds(),
    ),
    "watch: a server that fails": Case(
        lambda here: announced(here, status(500)),
        "run `idxflow doctor`",
        nothing,
        further(lambda here: announced(here, status(404)), "`idxflow up` creates it"),
    ),
    "watch: a server that breaks off": Case(
        lambda here: announced(here, broken_off(b"{}" * 9, 5)),
        "is it up? Check with `idxflow doctor`",
        nothing,
        further(lambda here: announced(here, status(404)), "`idxflow up` creates it"),
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
    reseal(model.entry.folder)


def change_version(here: Here) -> None:
    assert here.own
    path = here.ready / VERSION
    shutil.copy(path, here.folder / "backup")
    path.write_bytes(sealed(read_json(path) | {"weights_digest": "0" * 64}))


def version_shown(here: Here) -> None:
    here.run("registry", "show", "mine", "--store", str(here.folder / "store"), store=False)


def compared(here: Here, scored: SplitName) -> object:
    """Compare both versions on the training rows, where they are scored on those or on others."""
    store, dataset = here.own, blobs_dataset(here.folder)
    rows, train = split(store, dataset, scored), split(store, dataset, "train")
    champion, score = here.record(1), evaluate.fn(store, dataset, here.record(1), rows).record
    candidate = Candidate(here.record(2), evaluate.fn(store, dataset, here.record(2), rows).record, train, train)
    return compare(dataset, candidate, Incumbent(Registry(store, "tiny").version(1), champion, score=score))


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
    with needing(here, "test -e ready") as service:
        until_started(here, service.revive)


def kept_alive_by_up(here: Here) -> None:
    """The same in `idxflow up`, of what cannot use its database, `prefect.db`."""
    with needing(here, "! test -e prefect.db") as service, temporary_settings({PREFECT_HOME: here.folder}):
        supervisor = Supervisor(UpOptions())
        supervisor.server, supervisor.database_file = service, here.folder / "prefect.db"
        until_started(here, supervisor._revive_all)


@contextmanager
def needing(here: Here, condition: str) -> Iterator[Service]:
    """Start a program that stays where a condition holds, and says `started` in a file; its clock is fast."""
    program = f"{condition} || {{ echo 'ValueError: expected {condition}'; exit 3; }}; touch started; exec sleep 600"
    command = Command("server", ("bash", "-c", program), os.environ, here.folder, here.folder / "log")
    service = Service(command, itertools.count().__next__)
    service.start()
    try:
        yield service
    finally:
        service.stop(5)


def until_started(here: Here, look: Callable[[], object]) -> None:
    while not (here.folder / "started").exists():
        look()
        time.sleep(0.01)


def moved_aside(here: Here) -> None:
    """Do what the last message tells the shell."""
    match = re.search(r"\((mkdir .*)\) and start again", str(here.errors[-1]))
    assert match
    subprocess.run(["bash", "-c", match[1]], check=True)


def scheduled(here: Here, cron: str) -> object:
    plan = {"deployments": [{"name": "mine", "schedules": [{"cron": cron}]}]}
    return read_plan(here.write("prefect.yaml", json.dumps(plan).encode()))


def output_file(here: Here, path: str | Path) -> object:
    return destination("--out", here.folder / path, (".png",), Store(here.ready))


def spoiled(here: Here, name: str, change: Callable[[Path], object]) -> None:
    """Change a file of version 2, and seal it as if it were good."""
    assert here.own
    _changed(here.record(2).entry.folder / name, change)


def not_finite(path: Path) -> None:
    with np.load(path) as archive:
        values = dict(archive)
    np.savez(path, **{name: array * np.float32("nan") for name, array in values.items()})


def no_text(path: Path) -> None:
    path.write_bytes(b"?")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def unknown_activation(path: Path) -> None:
    network.save_architecture(path, dataclasses.replace(network.load_architecture(path), activation="step"))


def scored(here: Here, dataset: Any = None, **changes: Any) -> object:
    """Score version 2 on the test rows, of the data set with changes."""
    store, dataset = here.own, dataset or blobs_dataset(here.folder)
    rows = split(store, dataset, "test")
    return evaluate.fn(store, dataclasses.replace(dataset, **changes), here.record(2), rows)


def fewer_rows(here: Here) -> None:
    """Take a row of the test split away, and its number out of what the file says of itself."""
    path = split(here.own, blobs_dataset(here.folder), "test").file
    shutil.rmtree(here.ready / "tiny" / "6-evaluations")
    path.chmod(0o644)
    table, about = pq.read_table(path), pq.read_metadata(path).metadata
    values = {name: value for name, value in json.loads(about[b"idxflow"]).items() if name != "rows"}
    pq.write_table(table.slice(1).replace_schema_metadata({b"idxflow": json.dumps(values).encode()}), path)
    (path.parent / ENTRY).chmod(0o644)
    reseal(path.parent)


def copied_with(here: Here, read: Callable[[int, int], bytes]) -> None:
    """Copy an archive, with what the system reads of it."""
    with (here.mine / DEFAULT_FILES["test-labels"]).open("rb") as stream, pytest.MonkeyPatch.context() as patch:
        # As where a file cannot be cloned.
        patch.setattr(arrivals, "_cloned", lambda *_: False)
        patch.setattr(os, "read", read)
        arrivals.copied(stream.fileno(), Path(tempfile.mkdtemp(dir=here.folder)) / "copy")


def labels_checked(here: Here) -> None:
    check_labels(catalog.read(here.folder / "mine.toml"), here.decode().record, LABELS + 1)


def linked(here: Here) -> None:
    assert here.own
    (here.ready / "tiny").rename(here.folder / "elsewhere")
    (here.ready / "tiny").symlink_to(here.folder / "elsewhere")


def closed(here: Here, folder: Path, mode: int) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)


LEDGER = "mine/ledger/runs/00000001-run.json"


def recorded(here: Here) -> object:
    return Ledger(Store(here.folder / "store"), "mine").append("runs", "run", {})


def twice_recorded(here: Here) -> None:
    """Record twice on a file system that lists what was there before, as some over the network do for a while."""
    with pytest.MonkeyPatch.context() as stale:
        stale.setattr(Folder, "list", lambda *_: Listing((), ()))
        recorded(here)
        recorded(here)


def arrived(here: Here) -> None:
    here.set()
    here.manifest()


def as_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def inbox_of(here: Here) -> ArrivalFolder:
    return _inbox(WatchOptions(here.mine, None, here.folder / "mine.toml"))


def take_arrivals(here: Here) -> None:
    """Take what is in the folder, as `idxflow watch` does."""
    inbox, place = inbox_of(here), Path(tempfile.mkdtemp(dir=here.folder))
    look = inbox.contents()
    inbox.refuse(look)
    inbox.check(inbox.copy(look, place) or {}, place)


def a_set(here: Here) -> str:
    """Have `idxflow watch` take a set; return its id. There is no server to tell."""
    arrived(here)
    words = ("watch", str(here.mine), "--dataset-file", "mine.toml", "--once", "--store", "store")
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        further(lambda here: here.run(*words, store=False), "expected a Prefect server")(here)
    return Ledger(Store(here.folder / "store"), "mine").read("arrivals")[0]["arrival"]


def run_in_store(here: Here, *words: str) -> None:
    here.run(*words, "--store", str(here.folder / "store"), store=False)


def suppressed(act: Callable[[], object]) -> None:
    with suppress(IdxflowError):
        act()


def printed_into(here: Here, file: str) -> None:
    with Path(file).open("w") as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        here.run("datasets", store=False)


def clock(year: int) -> type[datetime]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(year, 5, 1, 12, tzinfo=tz)

    return Clock


def space(here: Here, free: int) -> None:
    """Have the disk have so many bytes left."""
    here.patch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1 << 50, 0, free))


NOWHERE = ELSEWHERE.api


def up(here: Here, *words: str, **more: str) -> None:
    """Start `idxflow up` in a process of its own, for a server elsewhere that is not there."""
    environment = clean_environment(here.folder, True, PREFECT_API_URL=NOWHERE, **more)
    ended = idxflow("up", *words, env=environment)
    if ended.returncode:
        raise IdxflowError(ended.stderr)


def look_for_server(here: Here, **more: str) -> None:
    """Have `idxflow status` look for the same server; it has to come to the one that is not there."""
    output = idxflow("status", env=clean_environment(here.folder, True, PREFECT_API_URL=NOWHERE, **more)).stdout
    if "found none" not in output:
        raise IdxflowError(output)


def other_server(here: Here) -> None:
    """Start `idxflow up` at a port of this machine that something else has."""
    with FaultServer({}) as other:
        up(here, "--port", other.host.rpartition(":")[2])


def announced(here: Here, answer: Answer) -> None:
    """Ask a server that answers so for the deployment that is told of sets."""
    answers = {"/api/health": whole_body(b"true"), "/api/admin/version": whole_body(b'"3.9.1"')}
    with (
        FaultServer({**answers, f"/api/deployments/name/{DEPLOYMENT}": answer}) as other,
        temporary_settings({PREFECT_API_URL: other.url("/api")}),
        connected(),
    ):
        pass


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a champion of `tiny`."""
    folder = tmp_path_factory.mktemp("ready")
    store = Store(folder / "store")
    store.prepare()
    registered(store, blobs_dataset(folder), epochs=1)
    registered(store, blobs_dataset(folder), promote=False, epochs=1, seed=2)
    return store.root


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all cases note the places that they come to."""
    return tmp_path_factory.mktemp("notes") / "notes"


@pytest.fixture
def here(tmp_path: Path, ready: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    place = Here(tmp_path, ready, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IDXFLOW_SOURCE", raising=False)
    with refusals.noting(notes, place.errors):
        yield place


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_an_error_tells_to_do_leads_on(here: Here, case: Case):
    with pytest.raises(IdxflowError) as caught:
        case.provoke(here)
    assert case.says in str(caught.value)
    case.mend(here)
    (case.then or case.provoke)(here)


def test_what_every_refusal_advises_is_done_here_or_in_a_test_that_is_marked(notes: Path):
    """Runs after the cases: in one process, in the order of the file."""
    if not notes.exists():
        pytest.fail("run the whole file: the cases note the places where they make errors")
    places, marked = {refusal.name for refusal in refusals.refusals()}, set(refusals.marked())
    assert marked - places == set(), "marks of places that are no more"
    missing = places - marked - refusals.met(notes)
    assert sorted(missing) == [], "do what these advise, in a case here or in a test marked `remedies`"
