"""Make a file for LiteRT (formerly TensorFlow Lite) of a SavedModel, and run such a file with LiteRT's interpreter.

TensorFlow's converter takes any network. It is restricted to LiteRT's own operators: a file with operators of
TensorFlow would need a runtime of another kind, which most devices do not have.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from storage.errors import ExportFailed
from storage.words import shortened
from tasks.model import network
from tasks.ui.banners import without_banners

_IDENTIFIER = b"TFL3"
"""Bytes 4-8 of each such file: https://ai.google.dev/edge/litert/conversion/tensorflow/model_metadata."""
_OF_THE_CONVERSION = b"CONVERSION_METADATA"
"""The converter's own record, with a hash over names that it counts on from one conversion to the next."""


def write(path: Path, saved_model: Path) -> None:
    """Write a `.tflite` file: `pixels` (float32, shape (n, height, width), raw) in, `probabilities` (n, classes) out.

    n is set when the file is used. Equal models give equal bytes with the same TensorFlow.

    Args:
        path: of the new file.
        saved_model: folder of a SavedModel that Keras has exported, from pixels to probabilities.

    Raises:
        ExportFailed: LiteRT has no operator for something that the model does.
    """
    tf = network.tensorflow()
    from tensorflow.lite.python.convert_phase import ConverterError

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        with without_banners():
            converted = converter.convert()
    except ConverterError as error:
        others = re.search(r"(?:Custom|Flex) ops: (.+)", str(error))
        found = others[1].strip() if others else shortened(str(error), 200)
        raise ExportFailed(
            f"expected a network of operators that LiteRT has; found {found}; choose another --format"
        ) from error
    path.write_bytes(_with_own_names(converted))


def run(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the probabilities computed from a file of `write` by LiteRT's interpreter.

    Args:
        pixels: float32 of shape (n, height, width).
    """
    from ai_edge_litert.interpreter import Interpreter

    with without_banners():
        answer = Interpreter(str(path)).get_signature_runner()(pixels=pixels)["probabilities"]
    return np.asarray(answer)


def _with_own_names(file: bytes) -> bytes:
    """Return a file whose names do not depend on what was converted before in the same process.

    Tensors inside are numbered, those outside are `pixels` and `probabilities`, and the hash over names is left out.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(file, 0)
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    for number, tensor in enumerate(graph.tensors):
        tensor.name = str(number)
    for ends, name in ((signature.inputs, "pixels"), (signature.outputs, "probabilities")):
        (end,) = ends
        end.name = graph.tensors[end.tensorIndex].name = name
    model.metadata = [entry for entry in model.metadata if entry.name != _OF_THE_CONVERSION]
    builder = flatbuffers.Builder(len(file))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())
