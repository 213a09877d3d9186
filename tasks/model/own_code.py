"""Call a user's own function that makes a Keras model, and take from the model what is needed to train it.

This is the only place where idxflow runs code that a manifest names: `SECURITY.md` says when.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from storage.datasets.catalog import one_line
from storage.datasets.own_models import Source
from storage.errors import ConfigError
from tasks.model import network, own_network
from tasks.model.own_network import OwnNetwork

R = TypeVar("R")


def made(source: Source, image_shape: tuple[int, int], classes: int, seed: int) -> OwnNetwork:
    """Call a user's function as `build((height, width, 1), classes)`, and return the network that it makes.

    The seed decides the initial weights: before the call, it is that of Python's, NumPy's, TensorFlow's and Keras's
    random numbers.

    Raises:
        ConfigError: the function raises, or does not return a model that can be trained.
    """
    network.tensorflow()
    # Keras counts the names of layers in each thread: in a new one, they are the same for each call.
    model = _in_new_thread(lambda: _called(source, (*image_shape, 1), classes, seed))
    return _in_new_thread(lambda: _taken(source, model, image_shape, classes))


def _called(source: Source, input_shape: tuple[int, ...], classes: int, seed: int) -> Any:
    import keras

    # What it prints is for people, and standard output may be for programs.
    with network.seeded(seed), _importable(source) as files, redirect_stdout(sys.stderr):
        keras.utils.set_random_seed(seed)
        try:
            model = getattr(files.module(source.module), source.function)(input_shape, classes)
            if isinstance(model, keras.Sequential) and not model.built:
                model.build((None, *input_shape))
        except BaseException as error:
            raise _raised(source, error) from error
    return model


def _taken(source: Source, model: Any, image_shape: tuple[int, int], classes: int) -> OwnNetwork:
    """Return the description and the weights of a model after checking that it can be trained and rebuilt."""
    import keras

    if not isinstance(model, keras.Model):
        found = "None" if model is None else f"a value of type {type(model).__name__}"
        raise _unusable(source, "a Keras model", found, "return the model")
    try:
        description = own_network.described(model)
        own_network.check_description(description)
        activation = own_network.without_softmax(description)
        inner = own_network.rebuilt(description)
        inner.set_weights(model.get_weights())
    except Exception as error:
        raise _unusable(
            source,
            "a Sequential or functional model of Keras's own layers, which can be rebuilt without this file",
            f"{type(model).__name__} with {one_line(str(error)) or type(error).__name__}",
            "use such layers instead",
        ) from error
    _check_shapes(source, inner, (*image_shape, 1), classes)
    if activation != "linear":
        found = f"the activation {activation} at its end"
        raise _unusable(source, "logits, or a softmax at the end", found, "remove it, or put softmax there")
    _check_weights(source, inner)
    names, variables = own_network.names_of(inner), own_network.variables_of(inner)
    start = {name: np.asarray(variable.value.numpy()) for name, variable in zip(names, variables, strict=True)}
    trained = len(inner.trainable_weights)
    return OwnNetwork(
        math.prod(image_shape),
        classes,
        image_shape,
        source.name,
        source.digest,
        tuple(_in_words(inner)),
        max(math.prod(image_shape), *_outputs(inner)),
        {name: start[name].shape for name in names[:trained]},
        {name: start[name].shape for name in names[trained:]},
        description,
        start,
    )


def _check_shapes(source: Source, model: Any, input_shape: tuple[int, ...], classes: int) -> None:
    wanted = {"input": (None, *input_shape), "output": (None, classes)}
    for end, shape in wanted.items():
        found = getattr(model, f"{end}_shape")
        if found != shape:
            raise _unusable(
                source, f"a model with an {end} of shape {shape}", f"one of {found}", "use the arguments for it"
            )


def _check_weights(source: Source, model: Any) -> None:
    if not model.trainable_weights:
        raise _unusable(source, "weights to train", "none", "add a layer that has some, or make one trainable")
    kinds = {str(variable.dtype) for variable in model.weights} | {str(model.outputs[0].dtype)}
    if kinds != {"float32"}:
        found = ", ".join(sorted(kinds))
        raise _unusable(source, "weights and outputs of type float32", found, "leave dtype out")


def _in_words(model: Any) -> Iterator[str]:
    """Yield the layers of a model, such as `Conv2D 8`, those of an inner model one by one."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _in_words(layer)
        elif type(layer).__name__ != "InputLayer":
            size = next((getattr(layer, name) for name in ("filters", "units", "rate") if hasattr(layer, name)), None)
            yield type(layer).__name__ + ("" if size is None else f" {size:g}")


def _outputs(model: Any) -> Iterator[int]:
    """Yield how many numbers each layer makes of one image, as far as Keras knows it."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _outputs(layer)
        # A layer that is used twice, or has several outputs, has no such shape.
        with suppress(AttributeError, ValueError):
            yield math.prod(size or 1 for size in layer.output.shape[1:])


def _raised(source: Source, error: BaseException) -> ConfigError:
    """Return the error for a function that raises, with the place in the user's files."""
    own = {file.path for file in source.files.values()}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    place = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    problem = one_line(f"{type(error).__name__}: {error}")
    is_import = isinstance(error, ImportError)
    remedy = "import installed packages, and single files beside this one" if is_import else "correct the function"
    return _unusable(source, "a Keras model", f"{problem}{place}", remedy)


def _unusable(source: Source, expected: str, found: str, remedy: str) -> ConfigError:
    return ConfigError(
        f"{source.path}: expected {expected} from the function {source.function}; found {found}; {remedy}"
    )


class _Files(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Finds and loads the modules of a user's source as they were read, not as their files are now."""

    def __init__(self, source: Source) -> None:
        self._files = source.files

    def module(self, name: str) -> ModuleType:
        """Run a module of the source, and return it."""
        spec = self.find_spec(name)
        assert spec is not None, "it is one of the files"  # noqa: S101
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        self.exec_module(module)
        return module

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if fullname not in self._files:
            return None
        return importlib.util.spec_from_file_location(fullname, self._files[fullname].path, loader=self)

    def get_source(self, fullname: str) -> str:
        return self._files[fullname].text

    def get_filename(self, fullname: str) -> str:
        return self._files[fullname].path

    def is_package(self, fullname: str) -> bool:
        return False


@contextmanager
def _importable(source: Source) -> Iterator[_Files]:
    """Have the modules of a user's source importable in the block; nothing of them is left after it."""
    files = _Files(source)
    before = {name: sys.modules.pop(name) for name in source.files if name in sys.modules}
    sys.meta_path.insert(0, files)
    try:
        yield files
    finally:
        sys.meta_path.remove(files)
        for name in source.files:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _in_new_thread(call: Callable[[], R]) -> R:
    """Return what `call` returns or raise what it raises; the thread does not keep the process from ending."""
    found: list[R] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="own model", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]
