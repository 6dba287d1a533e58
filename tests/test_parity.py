"""Every registered model through every exporter that runs here, at every kind of batch, in every precision: the file computes
what torch computes, within the tolerances that a build demands.

Whoever adds a model or an exporter to the entry points is tested here without writing a line. Engines are built wherever their
builder runs, and compared where there is a GPU to run them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorita_deploy.errors import ExporterUnavailable
from lorita_deploy.measure.fidelity import TOLERANCES, verify
from lorita_deploy.ports import EXPORTERS, MODELS, ExportJob, Session, find_exporter, find_model, names
from lorita_deploy.records import Artifact, EngineRecord, Precision
from lorita_deploy.train.datasets import load_dataset

CLASSES, CALIBRATION, JUDGED = 10, 64, 12
"""Images are calibrated on and, others, judged on: more than a batch, and no multiple of one."""
BATCHES = {"batch 1": 1, "batch 8": 8, "any batch": None}
BYTES = {"fp32": (0.95, 1.15), "fp16": (0.45, 0.6), "int8": (0.22, 0.4)}
"""Size of an ONNX file over that of the network's weights in fp32: that it is of the precision asked for."""
FAST = {
    ("fcn", "onnx", "batch 8", "fp32"),
    ("fcn", "onnx", "any batch", "fp16"),
    ("fcn", "onnx", "batch 1", "int8"),
    ("resnet20", "onnx", "any batch", "fp32"),
    ("fcn", "tensorrt-rtx", "any batch", "fp16"),
}


def cases() -> Iterator[Any]:
    for model in names(MODELS):
        for exporter in names(EXPORTERS):
            for batch in BATCHES:
                for precision in find_exporter(exporter).precisions:
                    case = (model, exporter, batch, precision)
                    yield pytest.param(*case, marks=() if case in FAST else pytest.mark.slow, id="-".join(case))


@functools.cache
def prepared(model: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with batch norms that matter (fresh ones are nearly the identity), and real images."""
    spec = find_model(model)
    torch.manual_seed(0)
    network = spec.build(CLASSES, spec.input_size).eval()
    drawn = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=drawn)
            layer.running_var.uniform_(0.5, 2.0, generator=drawn)
    digits = load_dataset("digits", shape=spec.input_shape(), seed=0)
    return network, next(iter(digits.batches("train", CALIBRATION + JUDGED)))[0]


def written(folder: Path, model: str, name: str, batch: int | None, precision: Precision) -> Artifact:
    """The artifact, and whatever it starts from, in ``folder``."""
    exporter = find_exporter(name)
    network, images = prepared(model)
    job = ExportJob(
        folder=folder,
        filename=f"{name}{exporter.suffix}",
        role="dense",
        network=network,
        examples=(images[:1],),
        opset=17,
        ir_version=8,
        precision=precision,
        runtime="onnxruntime" if name == "onnx" else "tensorrt",
        batch=batch or 1,
        dynamic_batch=batch is None,
        calibration=[(images[:CALIBRATION],)],
    )
    if exporter.source == "network":
        return exporter.export(job)
    before = find_exporter(exporter.source)
    source = before.export(dataclasses.replace(job, filename=f"{name}{before.suffix}"))
    return exporter.export(dataclasses.replace(job, source=source, capabilities=("SM86",)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("model", "exporter", "batch", "precision"), list(cases()))
def test_the_artifact_computes_what_torch_computes(
    tmp_path: Path, model: str, exporter: str, batch: str, precision: Precision
) -> None:
    if missing := find_exporter(exporter).check():
        pytest.skip("; ".join(missing))
    artifact = written(tmp_path, model, exporter, BATCHES[batch], precision)
    assert artifact.precision == precision
    network, images = prepared(model)
    if exporter == "onnx":
        weights = 4 * sum(each.numel() for each in network.parameters())
        assert BYTES[precision][0] < artifact.size_bytes / weights < BYTES[precision][1]
    else:
        record = EngineRecord.load(tmp_path / f"{artifact.path}.json")
        assert record.artifact == artifact
        assert record.network_layers >= len(list(network.parameters())) / 2
        assert artifact.size_bytes == (tmp_path / artifact.path).stat().st_size > 10_000
    session = opened(exporter, tmp_path / artifact.path)
    for size in (BATCHES[batch],) if BATCHES[batch] else (1, 5, 8):
        real, random = verify(
            network,
            session,
            (images[CALIBRATION:],),
            input_names=("input",),
            role="dense",
            batch=size,
            tolerance=TOLERANCES[precision],
        )
        assert real.passed, real
        assert random.passed or precision == "int8", "its ranges are those of real images"


def opened(exporter: str, path: Path) -> Session:
    try:
        return find_exporter(exporter).open(path)
    except ExporterUnavailable as error:
        pytest.skip(f"built; {error.what}")
