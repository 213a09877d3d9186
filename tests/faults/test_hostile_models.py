"""Model files made to run code, to read other files, to call home or to fill the memory, sealed as if they were good.

Whoever writes one of them can seal it again, so that no digest gives it away. The `.keras` files have the shapes of
the known ways to attack who loads a Keras model (CVE-2024-3660, CVE-2025-1550, CVE-2025-8747, CVE-2025-9905,
CVE-2025-9906, CVE-2025-12058, CVE-2025-49655, CVE-2026-0897, CVE-2026-1462, CVE-2026-1669, CVE-2026-12479).
"""

from __future__ import annotations

import base64
import io
import json
import marshal
import pickle
import resource
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.commands.cli import run_command
from storage.errors import DamagedEntry, IdxflowError
from storage.files import read_json
from storage.records import FolderEntry, Split, TrainedModel, from_json
from storage.registry import Registry
from storage.store import ENTRY, Store, load
from storage.verify import verify
from tasks.model import confirm_worker, network
from tasks.scoring.scores import evaluate_into
from tasks.serving.predict import load_champion
from tests.conftest import bars, write_tiny
from tests.support.runs import carried_out
from tests.support.tampering import Marker, reseal, writable_copy

IMAGES = bars(120, 30, 3, (9, 7))["test-images"]
GROWTH = 150_000_000
"""Bytes that all of this may add to the memory of the process; a bomb here is larger."""
BOMB = 400_000_000

_seen: list[str] | None = None
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event in _NEVER:
        _seen.append(f"{event} {arguments!r:.200}")
    elif event == "open" and "secret" in str(arguments[0]):
        _seen.append(f"open {arguments[0]}")
    elif event == "os.mkdir" and "ran" in Path(str(arguments[0])).name:
        _seen.append(f"mkdir {arguments[0]}")


sys.addaudithook(_watch)


@pytest.fixture
def seen() -> Iterator[list[str]]:
    """What happens during a test that no model file may bring about."""
    global _seen
    _seen = []
    yield _seen
    _seen = None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of two runs of `tiny`; TensorFlow is loaded."""
    folder = tmp_path_factory.mktemp("world")
    manifest = write_tiny(folder).manifest
    for seed in (1, 2):
        carried_out(Store(folder / "store"), manifest, seed=seed, epochs=4)
    network.tensorflow()
    # Imported, it asks the operating system for the processor, by a command.
    import keras

    assert keras.__version__
    return folder


class Bait:
    """What the files lead to: a folder that code makes, a file that is none of their business, a listening port."""

    def __init__(self, folder: Path) -> None:
        self.ran = folder / "ran"
        self.secret = folder / "secret"
        self.secret.write_bytes(b"a secret of sixteen bytes, and more")
        self.port = socket.create_server(("127.0.0.1", 0))
        self.port.settimeout(0.01)
        self.url = f"http://127.0.0.1:{self.port.getsockname()[1]}/x"

    def touched(self) -> list[str]:
        """Return what was touched."""
        traces = [str(self.ran)] if self.ran.exists() else []
        with suppress(TimeoutError):
            connection, address = self.port.accept()
            connection.close()
            traces.append(f"connection from {address}")
        return traces


@pytest.fixture
def bait(tmp_path: Path) -> Iterator[Bait]:
    bait = Bait(tmp_path)
    yield bait
    bait.port.close()


@pytest.fixture
def store(world: Path, tmp_path: Path) -> Store:
    """A copy of the store, writable."""
    return writable_copy(world / "store", tmp_path)


def champion_folder(store: Store) -> Path:
    return store.entries("tiny", "train") / Registry(store, "tiny").champion().model


# The files.


def layer(name: str, module: str = "keras.layers", **config: Any) -> dict[str, Any]:
    return {"class_name": name, "module": module, "registered_name": None, "config": {"name": name.lower(), **config}}


def function(name: str, module: str) -> dict[str, Any]:
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


def marshalled(bait: Bait) -> dict[str, Any]:
    code = compile(f"lambda x: (__import__('os').mkdir({str(bait.ran)!r}), x)[1]", "x", "eval").co_consts[0]
    text = base64.b64encode(marshal.dumps(code)).decode()
    return {"class_name": "__lambda__", "config": {"code": text, "defaults": None, "closure": None}}


def model(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    first = layer("InputLayer", batch_shape=[None, 9, 7], dtype="float32")
    return layer("Sequential", "keras", layers=[first, *layers]) | more


def archive(config: Any, weights: bytes = b"", **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        zipped.writestr("metadata.json", json.dumps({"keras_version": "3.15.1", "date_saved": "x"}))
        zipped.writestr("model.weights.h5", weights)
        for name, data in members.items():
            zipped.writestr(name, data)
    return buffer.getvalue()


def hdf5(fill: Callable[[Any], object]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        fill(file.create_group("layers/dense/vars"))
    return buffer.getvalue()


def dense(**config: Any) -> dict[str, Any]:
    return layer("Dense", units=3, **config)


def mkdir(bait: Bait) -> dict[str, Any]:
    return {"class_name": "mkdir", "module": "os", "config": {"path": str(bait.ran)}, "registered_name": None}


KERAS: dict[str, Callable[[Bait], bytes]] = {
    "a layer of marshalled code": lambda bait: archive(model(layer("Lambda", function=marshalled(bait)))),
    "an initializer that is a function of os": lambda bait: archive(model(dense(kernel_initializer=mkdir(bait)))),
    "an activation from outside keras": lambda bait: archive(model(dense(activation=function("system", "os")))),
    "the switch that allows code, then code": lambda bait: archive(
        model(
            dense(activation=function("enable_unsafe_deserialization", "keras.config")),
            layer("Lambda", function=marshalled(bait)),
        )
    ),
    "a download in a compile section": lambda bait: archive(
        model(dense(), compile_config={"loss": function("get_file", "keras.utils"), "args": [bait.url]})
    ),
    "a vocabulary that is another file": lambda bait: archive(
        model(layer("StringLookup", vocabulary=str(bait.secret))), **{"assets/string_lookup/vocabulary.txt": b"x"}
    ),
    "a vocabulary from an address": lambda bait: archive(model(layer("TextVectorization", vocabulary=bait.url))),
    "a pickled vocabulary": lambda bait: archive(
        model(layer("IntegerLookup")), **{"assets/integer_lookup/vocabulary.pkl": pickle.dumps(Marker(bait.ran))}
    ),
    "a pickled module": lambda bait: archive(
        model(
            layer("TorchModuleWrapper", module=base64.b64encode(pickle.dumps(Marker(bait.ran))).decode()),
        )
    ),
    "a saved model from elsewhere": lambda bait: archive(model(layer("TFSMLayer", filepath=str(bait.secret)))),
    "a layer whose name leads outside": lambda bait: archive(model(dense() | {"config": {"name": "../../ran"}})),
    "a member whose name leads outside": lambda bait: archive(model(dense()), **{"../../ran": b"x"}),
    "weights that are another file": lambda bait: archive(
        model(dense()),
        hdf5(lambda group: group.create_dataset("0", (16,), "u1", external=[(str(bait.secret), 0, 16)])),
    ),
    "weights that link to another file": lambda bait: archive(
        model(dense()), hdf5(lambda group: group.__setitem__("0", __import__("h5py").ExternalLink(bait.secret, "/")))
    ),
    "weights of a shape without end": lambda bait: archive(
        model(dense()), hdf5(lambda group: group.create_dataset("0", (1 << 45,), "f4", chunks=(1 << 20,)))
    ),
    "a description that is a bomb": lambda bait: archive(b"[" + b" " * BOMB + b"]"),
    "a model of the old format": lambda bait: hdf5(
        lambda group: group.file.attrs.__setitem__(
            "model_config", json.dumps(model(layer("Lambda", function=marshalled(bait))))
        )
    ),
    "a pickle": lambda bait: pickle.dumps(Marker(bait.ran)),
}


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + data


def pickled(bait: Bait) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Marker(bait.ran)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


NAMES = ("hidden_1.kernel", "hidden_1.bias", "classes.kernel", "classes.bias")


def arrays_of(member: bytes, **more: bytes) -> bytes:
    return npz(**{f"{name}.npy": member for name in NAMES}, **more)


WEIGHTS: dict[str, Callable[[Bait], bytes]] = {
    "pickled arrays": lambda bait: arrays_of(pickled(bait)),
    "a pickle beside the arrays": lambda bait: arrays_of(b"", **{"data.pkl": pickle.dumps(Marker(bait.ran))}),
    "a bare pickle": lambda bait: pickle.dumps(Marker(bait.ran)),
    "a header that is an expression": lambda bait: arrays_of(npy(f"__import__('os').mkdir({str(bait.ran)!r})")),
    "a type that is an expression": lambda bait: arrays_of(
        npy(f"{{'descr': [('a', '<f4', __import__('os').mkdir({str(bait.ran)!r}))], 'shape': (1,), }}")
    ),
    "a shape without end": lambda bait: arrays_of(
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 8), }")
    ),
    "a header nested without end": lambda bait: arrays_of(npy("(" * 60_000)),
    "a member whose name leads outside": lambda bait: arrays_of(b"", **{"../../../ran.npy": b"x"}),
    "a Keras model": KERAS["a layer of marshalled code"],
    "weights of HDF5": KERAS["a model of the old format"],
}

ARCHITECTURE: dict[str, Callable[[Bait], bytes]] = {
    "an activation that is a function": lambda bait: described(activation=function("system", "os")),
    "an activation with a name of Python": lambda bait: described(activation="__import__('os').system"),
    "layers of Keras": lambda bait: json.dumps(model(layer("Lambda", function=marshalled(bait)))).encode(),
    "a layer more than there are weights": lambda bait: described(hidden=[8, 8]),
    "layers without end": lambda bait: described(hidden=[1 << 24] * 100_000),
    "the largest layers": lambda bait: described(inputs=1 << 24, hidden=[1 << 24, 1 << 24]),
    "a size that is no number": lambda bait: described(inputs="9*7"),
    "a pickle": lambda bait: pickle.dumps(Marker(bait.ran)),
    "nesting without end": lambda bait: b'{"hidden":' + b"[" * 200_000,
}


def described(**changes: Any) -> bytes:
    return json.dumps({"inputs": 63, "hidden": [8], "activation": "tanh", "classes": 3} | changes).encode()


NORMALIZATION: dict[str, Callable[[Bait], bytes]] = {
    "pickled arrays": lambda bait: npz(**{"mean.npy": pickled(bait), "std.npy": pickled(bait)}),
    "a pickle": lambda bait: pickle.dumps(Marker(bait.ran)),
}


# The ways into the product.


def command(*words: str, store: Store) -> int:
    return run_command([*words, "--store", str(store.root)])


def ways(store: Store, folder: Path) -> dict[str, Callable[[], object]]:
    """Return everything that is done with a version, but training another one."""
    dataset = write_tiny(folder)
    record = store.entries("tiny", "train") / Registry(store, "tiny").champion().model
    test = next(path.parent for path in store.entries("tiny", "decode").glob("*/test.parquet"))

    def scored() -> object:
        # Not `evaluate`, which finds the score that the weights had.
        return evaluate_into(folder, dataset, load(record, TrainedModel), load(test, Split))

    def exported() -> None:
        if command("export", "tiny", "--out", str(folder / "export"), store=store):
            raise DamagedEntry

    return {
        "predict": lambda: load_champion("tiny", store).predict(IMAGES).probabilities,
        "evaluate": scored,
        "export": exported,
        "report": lambda: command("report", "tiny", "--out", str(folder / "again.html"), store=store),
        "show": lambda: command("registry", "show", "tiny", store=store),
        "diff": lambda: command("registry", "diff", "tiny", "1", "2", store=store),
        "runs": lambda: command("runs", "diff", "tiny", "latest", "champion", store=store),
        "verify": lambda: verify(store),
        "promote": lambda: command("promote", "tiny", "2", "--force", "--reason", "a try", store=store),
        "rollback": lambda: command("rollback", "tiny", "--to", "1", "--reason", "a try", store=store),
        "gc": lambda: command("gc", "--dry-run", store=store),
    }


def through_all(store: Store, folder: Path) -> set[str]:
    """Take every way; return those that refused."""
    refused = {}
    for name, way in ways(store, folder).items():
        try:
            way()
        except IdxflowError as error:
            refused[name] = str(error)
    assert all(len(sentence) < 2_000 for sentence in refused.values())
    return set(refused)


def planted(store: Store, name: str, data: bytes) -> Path:
    """Put `data` in the place of a file of the champion, with a description that fits it."""
    path = champion_folder(store) / name
    path.write_bytes(data)
    reseal(path.parent)
    load(path.parent, TrainedModel)
    return path


def test_the_bait_is_taken_by_who_trusts_such_a_file(world: Path, bait: Bait, seen: list[str], tmp_path: Path):
    """Else the tests below would show nothing."""
    import keras

    path = tmp_path / "trusted.keras"
    path.write_bytes(KERAS["a layer of marshalled code"](bait))
    with pytest.raises(Exception, match="unsafe"):
        keras.saving.load_model(path)
    assert not seen
    with zipfile.ZipFile(path) as zipped:
        restored = keras.saving.deserialize_keras_object(json.loads(zipped.read("config.json")), safe_mode=False)
    if not bait.ran.exists():
        restored(np.zeros((1, 9, 7), np.float32))
    assert bait.touched() == [str(bait.ran)]
    bait.ran.rmdir()
    pickle.loads(WEIGHTS["a bare pickle"](bait))
    assert any(event.startswith("pickle.find_class") for event in seen)
    socket.create_connection(bait.port.getsockname()).close()
    bait.secret.read_bytes()
    assert {event.split()[0] for event in seen} >= {"pickle.find_class", "socket.connect", "open", "mkdir"}
    assert len(bait.touched()) == 2


@pytest.mark.parametrize("what", KERAS)
def test_no_way_opens_the_keras_file_of_a_version(store: Store, bait: Bait, tmp_path: Path, seen: list[str], what: str):
    good = load_champion("tiny", store).predict(IMAGES).probabilities
    path = planted(store, "model.keras", KERAS[what](bait))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert through_all(store, tmp_path) == set()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH // 1024
    assert (seen, bait.touched()) == ([], [])
    assert path.exists()
    # What is exported comes from the arrays: it is the model, and nothing of the file.
    import keras

    written = keras.saving.load_model(tmp_path / "export" / "model.keras")
    np.testing.assert_allclose(written(IMAGES.astype(np.float32)).numpy(), good, atol=1e-5)
    assert (tmp_path / "export" / "model.keras").read_bytes() != path.read_bytes()


@pytest.mark.parametrize("name", ["savedmodel"])
def test_nor_does_an_export_of_another_kind(store: Store, bait: Bait, tmp_path: Path, seen: list[str], name: str):
    planted(store, "model.keras", KERAS["a layer of marshalled code"](bait))
    assert command("export", "tiny", "--format", name, "--out", str(tmp_path / "out"), store=store) == 0
    assert (seen, bait.touched()) == ([], [])
    assert not list((tmp_path / "out").rglob("*.keras"))


HOSTILE = {
    f"{name}: {what}": (name, make)
    for name, cases in (
        ("weights.npz", WEIGHTS),
        ("architecture.json", ARCHITECTURE),
        ("normalization.npz", NORMALIZATION),
    )
    for what, make in cases.items()
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_by_all_who_read_it_and_runs_nothing(
    store: Store, bait: Bait, tmp_path: Path, seen: list[str], capsys: pytest.CaptureFixture[str], what: str
):
    name, make = HOSTILE[what]
    planted(store, name, make(bait))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert through_all(store, tmp_path) == {"predict", "evaluate", "export"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH // 1024
    assert (seen, bait.touched()) == ([], [])
    assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.glob("export*")), "half an export was left"


def test_the_fresh_process_that_confirms_runs_nothing_either(store: Store, bait: Bait, tmp_path: Path):
    images = tmp_path / "images.npz"
    program = "import sys; from tasks.model import confirm_worker; confirm_worker.main(sys.argv[1:])"
    for what in ("weights.npz: pickled arrays", "architecture.json: an activation that is a function"):
        name, make = HOSTILE[what]
        good = (champion_folder(store) / name).read_bytes()
        folder = planted(store, name, make(bait)).parent
        model = from_json(TrainedModel, read_json(folder / ENTRY)["record"], FolderEntry(folder))
        command = [sys.executable, "-c", program, str(images), str(tmp_path / "out.npz")]
        request = confirm_worker.request(model, images, np.zeros((2, 9, 7), np.uint8))
        ended = subprocess.run(command, input=request, capture_output=True, text=True, timeout=240, check=False)
        assert ended.returncode != 0
        assert "DamagedEntry" in ended.stderr.splitlines()[-1]
        assert bait.touched() == []
        planted(store, name, good)
    assert not (tmp_path / "out.npz").exists()
