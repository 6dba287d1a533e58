"""int8 as QuantizeLinear and DequantizeLinear in the graph, by ONNX Runtime's static quantiser, the way each runtime wants it.

Weights: int8, per output channel, symmetric. Activations, by the runtime that the file is for:

    tensorrt      int8, symmetric, zero point 0 (its parser takes nothing else); inputs of weighted layers only, biases in fp32
    onnxruntime   uint8, symmetric too: zero point 0 where nothing is negative (after a ReLU, which then costs nothing), 128
                  elsewhere; every operator that runs in int8, biases in int32: what its fused kernels ask for

ONNX Runtime fuses no layer whose ReLU is followed by signed numbers, so the first kind is slower there than fp32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
Ranges = dict[str, tuple[float, float]]
"""Smallest and largest number of each float activation."""

WEIGHTED = ("Conv", "Gemm", "MatMul")
WITH_INT8_KERNELS = (*WEIGHTED, "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
PASSING_ON = ("Relu", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Operators that keep the numbers of what they read: int8 through and through where their input is."""


def measure_ranges(model: ModelProto, feeds: Sequence[Arrays]) -> Ranges:
    """Over all of ``feeds``, by ONNX Runtime's min-max calibrator."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    with tempfile.TemporaryDirectory(prefix="int8-") as name, _quiet():
        path, augmented = str(Path(name, "model.onnx")), str(Path(name, "augmented.onnx"))
        onnx.save(model, path)
        calibrator = create_calibrator(
            path, (*WITH_INT8_KERNELS, *PASSING_ON), augmented_model_path=augmented, calibrate_method=CalibrationMethod.MinMax
        )
        calibrator.collect_data(_Reader(feeds))
        found = calibrator.compute_data()
    return {name: (float(np.min(each.lowest)), float(np.max(each.highest))) for name, each in found.items()}


def assumed_ranges(model: ModelProto) -> Ranges:
    """Made up, for timing alone: 0..1 after a ReLU and -1..1 elsewhere."""
    after_relu = {node.output[0] for node in model.graph.node if node.op_type == "Relu"}
    names = [each.name for each in model.graph.input] + [name for node in model.graph.node for name in node.output]
    return {name: (0.0 if name in after_relu else -1.0, 1.0) for name in names}


def quantize(model: ModelProto, ranges: Ranges, runtime: str, keep: Collection[str] = ()) -> ModelProto:
    """The quantised graph for ``runtime``; the nodes named in ``keep`` stay fp32."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    here = runtime == "onnxruntime"
    limits = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    options: dict[str, Any] = {
        "ActivationSymmetric": not here,
        "ActivationRestrictedAsymmetric": here,
        "WeightSymmetric": True,
        "QuantizeBias": here,
        "DedicatedQDQPair": not here,
        "MatMulConstBOnly": True,
        "OpTypesToExcludeOutputQuantization": [] if here else list(WEIGHTED),
    }
    inferred = onnx.shape_inference.infer_shapes(model)
    with _quiet():
        quantizer = QDQQuantizer(
            inferred,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8 if here else QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
            nodes_to_quantize=[],
            nodes_to_exclude=_excluded(model, keep),
            op_types_to_quantize=[*WITH_INT8_KERNELS, *PASSING_ON] if here else list(WEIGHTED),
            extra_options=options,
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantized: ModelProto = quantizer.model.model
    del quantized.graph.value_info[:]
    kept = [each for each in quantized.opset_import if each.domain in ("", "ai.onnx")]
    copies = [(each.domain, each.version) for each in kept]
    del quantized.opset_import[:]
    for domain, version in copies:
        quantized.opset_import.add(domain=domain, version=version)
    return quantized


def quantizable(model: ModelProto) -> tuple[str, ...]:
    """Names of the nodes with a stored weight: the layers that int8 is about."""
    stored = {each.name for each in model.graph.initializer}
    return tuple(node.name for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in stored)


def _excluded(model: ModelProto, keep: Collection[str]) -> list[str]:
    """``keep``, what reads their outputs without a weight of its own (sums, pools), and the matrix products of two activations
    (attention), which int8 costs more than it gives."""
    weighted = set(quantizable(model))
    excluded = [node.name for node in model.graph.node if node.op_type in WEIGHTED and node.name not in weighted]
    exact: set[str] = set()
    for node in model.graph.node:
        if node.name in keep or (node.name not in weighted and exact.intersection(node.input)):
            excluded.append(node.name)
            exact.update(node.output)
    return excluded


class _Reader:
    """What the calibrator reads its data from."""

    def __init__(self, feeds: Sequence[Arrays]) -> None:
        self.left = iter(feeds)

    def get_next(self) -> Arrays | None:
        return next(self.left, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser warns about advice that does not hold here, through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
