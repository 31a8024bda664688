"""ONNX programs of 8-bit numbers.

`store_int8` stores the weights alone: the arithmetic stays that of float32. `compute_int8` also
lets convolutions compute in 8 bits, in ranges that pictures show (static quantisation).

`benchmarks/exporting.py` says what both cost. The first layers of a CNN, which are small, lose most
by rounding: with them in more bits, features differ half as much from those of float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1024  # numbers of a matrix; smaller ones stay
SMALL = 16384  # smaller ones have 16 bits
FIRST = 4  # convolutions that compute in float32


def store_int8(file: Path) -> None:
    """Store the matrices of an ONNX program as int8, with a scale for each row or column.

    Each matrix is scaled along the axis that loses least; small ones become float16 instead. The
    arithmetic stays that of float32.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(file)
    graph = model.graph
    stored, widen = [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < SMALLEST:
            stored.append(tensor)
            continue
        if values.size < SMALL:
            name = f"{tensor.name}.fp16"
            stored.append(numpy_helper.from_array(values.astype(np.float16), name))
            widen.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
            continue
        axis, rounded, scales = _rounded(values)
        names = f"{tensor.name}.int8", f"{tensor.name}.scales"
        stored.append(numpy_helper.from_array(rounded, names[0]))
        stored.append(numpy_helper.from_array(scales, names[1]))
        widen.append(helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis))
    nodes = [*widen, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(stored)
    graph.node.extend(nodes)
    file.write_bytes(model.SerializeToString())


def compute_int8(file: Path, pixels: Iterable[NDArray[np.uint8]]) -> None:
    """Let an encoder compute in 8 bits, with ranges from pixels, uint8 (1, 3, S, S) each.

    A range is the mean of the ranges of the pictures: the widest of all would leave fewer steps for
    usual numbers.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[Any] = iter(pixels)

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.rest, None)
            return None if picture is None else {"pixels": picture}

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it warns that it was not prepared, and it was
    try:
        quant_pre_process(str(file), str(file))
        nodes = onnx.load(file).graph.node
        convolutions = [node.name for node in nodes if node.op_type == "Conv"]
        quantize_static(
            str(file),
            str(file),
            Pictures(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=convolutions[:FIRST],
            extra_options={"CalibMovingAverage": True},
        )
    finally:
        logging.root.setLevel(level)


def _rounded(
    values: NDArray[np.float32],
) -> tuple[int, NDArray[np.int8], NDArray[np.float32]]:
    """Return the axis of the scales, the rounded numbers, and the scales."""
    found = []
    for axis in range(values.ndim):
        others = tuple(other for other in range(values.ndim) if other != axis)
        scales = np.maximum(np.abs(values).max(others, keepdims=True), 1e-12) / 127
        rounded = np.rint(values / scales)
        loss = float(np.square(rounded * scales - values).sum())
        found.append((loss, axis, rounded.astype(np.int8), scales.reshape(-1)))
    _, axis, rounded, scales = min(found, key=lambda each: each[:2])
    return axis, rounded, scales.astype(np.float32)
