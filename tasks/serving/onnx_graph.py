"""Write a trained network as ONNX, from its arrays alone, without loading TensorFlow.

The operators are those of opset 20, the first with the exact Gelu; ONNX Runtime supports it since 1.17
(https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tasks.model.forward import folded
from tasks.model.network import SIDE, Architecture, Weights
from tasks.model.scaling import Statistics, scale_and_offset

OPSET = 20
_IR_VERSION = 9
"""Version of the file format introduced with opset 20. Older runtimes refuse newer versions."""

_OPERATORS = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid", "elu": "Elu", "selu": "Selu", "gelu": "Gelu"}
"""Activations with an operator of their own; with ONNX's defaults, they equal those of `tasks.model.network`."""


def write(
    path: Path, architecture: Architecture, weights: Weights, statistics: Statistics, shape: tuple[int, int]
) -> None:
    """Write an ONNX file: `pixels` (float32, shape (n, height, width), raw) in, `probabilities` (n, classes) out.

    It includes the normalisation. Equal models give equal bytes.
    """
    from onnx import TensorProto, checker, helper

    graph = _Graph()
    weights = folded(architecture, weights)
    scale, offset = scale_and_offset(statistics)
    rows = graph.add("Flatten", ["pixels"], "flat")
    rows = graph.add("Mul", [rows, graph.array("scale", np.asarray(scale))], "scaled")
    rows = graph.add("Add", [rows, graph.array("offset", offset)], "normalized")
    if architecture.conv:
        rows = _features(graph, rows, architecture, weights)
    for name, _, _ in architecture.layers:
        arrays = [graph.array(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("kernel", "bias")]
        rows = graph.add("Gemm", [rows, *arrays], name)
        if name != "classes":
            rows = graph.activate(rows, architecture.activation)
    graph.add("Softmax", [rows], "probabilities")
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "idxflow",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", architecture.classes])],
            graph.arrays,
        ),
        producer_name="idxflow",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
    )
    checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _features(graph: _Graph, rows: str, architecture: Architecture, weights: Weights) -> str:
    """Add the blocks of convolution and pooling; ONNX has channels before rows, Keras after columns."""
    shape = np.array([-1, 1, *(architecture.image_shape or ())], np.int64)
    images = graph.add("Reshape", [rows, graph.array("image_shape", shape)], "image")
    for number, (name, _, _) in enumerate(architecture.convolutions, start=1):
        kernel = np.ascontiguousarray(weights[f"{name}.kernel"].transpose(3, 2, 0, 1))
        arrays = [graph.array(f"{name}.kernel", kernel), graph.array(f"{name}.bias", weights[f"{name}.bias"])]
        images = graph.add("Conv", [images, *arrays], name, kernel_shape=[SIDE, SIDE], pads=[SIDE // 2] * 4)
        images = graph.activate(images, architecture.activation)
        images = graph.add("MaxPool", [images], f"pool_{number}", kernel_shape=[2, 2], strides=[2, 2])
    return graph.add("Flatten", [graph.add("Transpose", [images], "channels_last", perm=[0, 2, 3, 1])], "features")


def run(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the probabilities computed from a file of `write` by ONNX's own reference implementation.

    Args:
        pixels: float32 of shape (n, height, width).
    """
    from onnx.reference import ReferenceEvaluator

    (answer,) = ReferenceEvaluator(str(path)).run(None, {"pixels": pixels})
    return np.asarray(answer)


class _Graph:
    """The operators and arrays of a graph, in order; each operator has one output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: list[int]) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}:{operator}", **attributes))
        return output

    def array(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        self.arrays.append(numpy_helper.from_array(values, name))
        return name

    def activate(self, rows: str, activation: str) -> str:
        if activation == "silu":
            # A separate operator exists only from opset 24 on.
            return self.add("Mul", [rows, self.add("Sigmoid", [rows], f"{rows}.sigmoid")], f"{rows}.silu")
        return self.add(_OPERATORS[activation], [rows], f"{rows}.{activation}")
