"""Export a model for use without idxflow: raw pixels in, probabilities out; verified before it gets its final name."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from packaging.requirements import Requirement

from storage.errors import ConfigError, DamagedEntry, ExportFailed
from storage.files import check_local, flush, kind_of, make_folder, sha256_of, write_bytes
from storage.registry import Registry
from storage.store import Store
from storage.words import meant
from tasks.model import network, own_network, scaling
from tasks.model.own_network import OwnNetwork
from tasks.serving import litert, onnx_graph
from tasks.serving.predict import Model, find_version, load_champion

Format = Literal["keras", "savedmodel", "onnx", "litert"]
FORMATS: tuple[str, ...] = get_args(Format)
PACKAGES = {"onnx": "onnx>=1.23,<2", "litert": "ai-edge-litert>=2.3,<3"}
"""What a format needs besides idxflow: the requirements of the extra `export` in pyproject.toml."""
TOLERANCE = 1e-5
"""Largest allowed difference in a probability between the export and idxflow's own prediction."""
CHECKED_ROWS = 32
_BLOCK_PIXELS = 1 << 24
"""64 MiB as floats; an export needs a few times as much while it predicts."""

_LAYERS = {
    ("keras.layers", name)
    for name in (
        *("InputLayer", "Flatten", "EinsumDense", "Dense"),
        *("Reshape", "Conv2D", "MaxPooling2D", "BatchNormalization", "Activation"),
    )
}

Answer = Callable[[np.ndarray], np.ndarray]
"""Probabilities, shape (n, classes), for pixels, float32 of shape (n, height, width)."""


@dataclass(frozen=True)
class Export:
    """A complete and verified export."""

    folder: Path
    """Folder with `model.keras`, `model.onnx`, `model.tflite` or the files of a SavedModel, and what describes it.

    That is `model.json` for programs and `README.md`, its model card, for people.
    """
    format: Format
    version: int
    rows: int
    """Number of images compared."""
    difference: float
    """Largest difference in a probability, at most `TOLERANCE`."""


def check_possible(kind: str, folder: Path) -> None:
    """Check, before anything is loaded, that the format can be written and `folder` does not exist.

    Raises:
        ConfigError: the format is unknown, its package is missing or of another version, or `folder` already exists.
    """
    if kind not in FORMATS:
        raise ConfigError(
            f"expected --format to be one of {', '.join(FORMATS)}; found {kind!r}{meant(kind, FORMATS)}; "
            "choose one of these"
        )
    if kind in PACKAGES:
        _check_installed(kind, Requirement(PACKAGES[kind]))
    if folder.exists() or folder.is_symlink():
        raise ConfigError(
            f"expected a new name for --out; {folder} already exists ({kind_of(folder)}); delete it, or choose another"
        )


def _check_installed(kind: str, needed: Requirement) -> None:
    try:
        found = metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        found = ""
    if not needed.specifier.contains(found or "0", prereleases=True):
        raise ConfigError(
            f"expected the package {needed.name} ({needed.specifier}) for --format {kind}; found {found or 'none'}; "
            f"install it (`{sys.executable} -m pip install '{PACKAGES[kind]}'`, of the extra `export` of "
            "pyproject.toml), or choose keras or savedmodel"
        )


def export(model: Model, kind: Format, folder: Path) -> Export:
    """Write `model` into the new folder `folder`, either complete and verified or not at all.

    Raises:
        ConfigError: see `check_possible`; or the folder cannot be written; or the format is not for this network.
        ExportFailed: the export's predictions differ from the model's own.
    """
    folder = folder.expanduser().absolute()
    check_possible(kind, folder)
    if kind == "onnx" and model.record.own:
        raise ConfigError(
            f"expected a network of idxflow's own for --format onnx; found one that {model.record.own.name} has made; "
            "choose keras, savedmodel or litert"
        )
    images = probe_images(model)
    with _beside(folder) as temporary:
        answer = _WRITERS[kind](model, temporary)
        difference = _difference(model, images, answer)
        result = Export(folder, kind, model.version.number, len(images), difference)
        _describe(model, result, temporary)
        for path in sorted(temporary.rglob("*")):
            flush(path)
        os.rename(temporary, folder)
        flush(folder.parent)
    return result


def export_version(store: Store, dataset: str, version: str, kind: str, folder: Path | None) -> Export:
    """Export the champion or a version of a data set.

    Args:
        version: `champion`, or a number such as `7` or `v7`.
        kind: one of `FORMATS`.
        folder: to create; None: `DATASET-vN-FORMAT` in the current folder.

    Raises:
        IdxflowError: there is no such version, the format or folder cannot be used, or the predictions differ.
    """
    check_local("--out", folder or "")
    version_record = find_version(store, dataset, version)
    target = (folder or Path(f"{dataset}-v{version_record.number}-{kind}")).expanduser().absolute()
    check_possible(kind, target)
    with store.in_use(dataset):
        return export(load_champion(dataset, store, version_record), kind, target)  # type: ignore[arg-type]


def probe_images(model: Model) -> np.ndarray:
    """Return images to compare predictions on, always the same for a model: uint8, shape (32, height, width).

    They are a black and a white image, the mean training image, and that mean with increasing noise.
    """
    random = np.random.Generator(np.random.PCG64(0))
    images = np.empty((CHECKED_ROWS, *model.image_shape), np.uint8)
    images[0], images[1] = 0, 255
    # One by one: all of them together, as floats, would take eight times the memory.
    for number, strength in enumerate(np.linspace(0, 255, CHECKED_ROWS - 2), start=2):
        noise = random.uniform(-0.5, 0.5, model.image_shape)
        images[number] = np.clip(model.mean_image + strength * noise, 0, 255)
    return images


def _difference(model: Model, images: np.ndarray, answer: Answer) -> float:
    expected = model.predict(images).probabilities
    actual = np.concatenate([answer(block.astype(np.float32)) for block in _blocks(images)])
    largest = float(np.abs(actual - expected).max()) if actual.shape == expected.shape else float("inf")
    # Not `largest > TOLERANCE`, which is false for NaN.
    if not largest <= TOLERANCE:
        raise ExportFailed(
            f"expected the export of v{model.version.number} to give the model's own probabilities within "
            f"{TOLERANCE:g} on {len(images)} images; they differ by up to {largest:.2g}; nothing was written; "
            "choose another --format"
        )
    return largest


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Split images into blocks of at most `_BLOCK_PIXELS` pixels, and at least one image."""
    rows = max(1, _BLOCK_PIXELS // images[0].size)
    return (images[start : start + rows] for start in range(0, len(images), rows))


def _describe(model: Model, result: Export, folder: Path) -> None:
    """Write `model.json` and the model card into the folder of an export."""
    # It needs what a report needs, and nothing else here does.
    from tasks.report.model_card import model_card

    described = _described(model, result, folder)
    write_bytes(folder / "model.json", json.dumps(described, indent=1, ensure_ascii=False).encode())
    card = model_card(Registry(model.store, model.version.dataset), model.version, described)
    write_bytes(folder / "README.md", card.encode())


def _described(model: Model, result: Export, folder: Path) -> dict[str, Any]:
    version = model.version
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "dataset": version.dataset,
        "version": version.number,
        "format": result.format,
        "classes": list(version.classes),
        "input": {"shape": [None, *version.image_shape], "type": "float32", "range": list(model.pixel_range)},
        "output": {"shape": [None, len(version.classes)], "type": "float32", "meaning": "probability of each class"},
        "weights_digest": version.weights_digest,
        "test_accuracy": version.test_accuracy,
        "checked": {"images": result.rows, "largest_difference": result.difference},
        "files": {path.relative_to(folder).as_posix(): sha256_of(path) for path in files},
    }


def _keras(model: Model, folder: Path) -> Answer:
    return _answer_of(_keras_model(model, folder / "model.keras"))


def _savedmodel(model: Model, folder: Path) -> Answer:
    tf = network.tensorflow()
    save(_unsaved_keras_model(model, folder), folder)
    # Keep the object, not only its function: the variables live only as long as the object.
    loaded = tf.saved_model.load(folder)
    return lambda pixels: np.asarray(loaded.serve(tf.constant(pixels)).numpy())


def save(keras_model: Any, folder: Path) -> None:
    """Write a Keras model as a SavedModel.

    Raises:
        OSError: there is no space for it.
    """
    tf = network.tensorflow()
    try:
        with network.without_copy_warning():
            keras_model.export(folder, format="tf_saved_model", verbose=False)
    except tf.errors.ResourceExhaustedError as error:
        # TensorFlow's word for a full disk.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _litert(model: Model, folder: Path) -> Answer:
    path, saved = folder / "model.tflite", folder / "saved"
    save(_unsaved_keras_model(model, folder), saved)
    litert.write(path, saved)
    shutil.rmtree(saved)
    return lambda pixels: litert.run(path, pixels)


def _onnx(model: Model, folder: Path) -> Answer:
    path = folder / "model.onnx"
    architecture, weights, statistics = _parts(model)
    assert isinstance(architecture, network.Architecture), "others were refused"  # noqa: S101
    onnx_graph.write(path, architecture, weights, statistics, model.image_shape)
    return lambda pixels: onnx_graph.run(path, pixels)


_WRITERS: dict[Format, Callable[[Model, Path], Answer]] = {
    "keras": _keras,
    "savedmodel": _savedmodel,
    "onnx": _onnx,
    "litert": _litert,
}


def _answer_of(keras_model: Any) -> Answer:
    return lambda pixels: np.asarray(keras_model(pixels, training=False).numpy())


def _keras_model(model: Model, path: Path) -> Any:
    """Write the model's arrays as a `.keras` file, byte for byte as after training, and load that file.

    The file in the store is for users and is never opened: a Keras model can refer to code, in ways not all known.
    """
    architecture, weights, statistics = _parts(model)
    if isinstance(architecture, OwnNetwork):
        own_network.export(path, architecture, weights, statistics)
    else:
        network.export(path, architecture, weights, statistics, model.image_shape)
    return reopened(path, isinstance(architecture, OwnNetwork))


def _parts(model: Model) -> tuple[network.Architecture | OwnNetwork, network.Weights, scaling.Statistics]:
    architecture = model.classifier.architecture
    weights = network.load_weights(model.record.weights, architecture)
    return architecture, weights, scaling.read(model.record.normalization, architecture.inputs)


def _unsaved_keras_model(model: Model, folder: Path) -> Any:
    """Return the model that `_keras_model` loads, and delete its file."""
    path = folder / "model.keras"
    keras_model = _keras_model(model, path)
    path.unlink()
    return keras_model


def reopened(path: Path, own: bool = False) -> Any:
    """Load the Keras model in a `.keras` file, accepting only the kinds of layers that idxflow writes.

    Args:
        own: whether a user's function has made it: then any layer of Keras that runs no other code.

    Raises:
        DamagedEntry: the file has other contents.
    """
    network.tensorflow()
    import keras

    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        own_network.check_description(config)
        kinds = [(layer["module"], layer["class_name"]) for layer in config["config"]["layers"]]
        if config["class_name"] != "Sequential" or not (own or set(kinds) <= _LAYERS):
            raise ValueError(f"it is a {config['class_name']} of {kinds}")
        keras_model = keras.saving.deserialize_keras_object(config, safe_mode=True)
        keras_model.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DamagedEntry(f"{path}: expected a Keras model as idxflow writes it; {error}; export it again") from error
    return keras_model


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Make a temporary folder, to be renamed to `folder`; it is removed in any case."""
    try:
        make_folder(folder.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise ConfigError(
            f"expected a folder that can be created at {folder}; {error.strerror}; choose another --out"
        ) from error
    try:
        # `mkdtemp` gives access only to the owner.
        temporary.chmod(0o755)
        yield temporary
    except OSError as error:
        raise ConfigError(
            f"expected to write the export at {folder}; {error.strerror}; free space there, or choose another --out"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
