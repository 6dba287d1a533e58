"""Every sample model through every exporter in every precision: parsed, built, verified, how large, how long.

    python benchmarks/exporters.py [MODEL ...]        writes benchmarks/exporters.md

Networks have fresh weights (training changes neither graph nor size) with lively batch norms, calibrated on 64 real digits and
verified on 8 others against torch. Engines cannot run on a machine without a GPU: there they are parsed and built only.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from lorita_deploy.errors import LoritaDeployError
from lorita_deploy.measure.fidelity import TOLERANCES, verify
from lorita_deploy.ports import EXPORTERS, MODELS, ExportJob, find_exporter, find_model, names
from lorita_deploy.records import EngineRecord, Precision
from lorita_deploy.train.datasets import load_dataset

RESULT = Path(__file__).resolve().parent / "exporters.md"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
CLASSES, CALIBRATION = 10, 64
HEADER = (
    "model",
    "exporter",
    "for",
    "precision",
    "parsed",
    "built",
    "verified (max rel.)",
    "kept in fp32",
    "MB",
    "s",
)
Row = tuple[str, ...]


def lively(network: nn.Module) -> nn.Module:
    """Batch norms with statistics that matter; fresh ones are nearly the identity."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


def rows(model: str, folder: Path) -> Iterator[Row]:
    """One row for each exporter and precision."""
    spec = find_model(model)
    torch.manual_seed(0)
    network = lively(spec.build(CLASSES, spec.input_size))
    digits = load_dataset("digits", shape=spec.input_shape(), seed=0)
    images = next(iter(digits.batches("train", CALIBRATION + 8)))[0]
    onnx, engines = find_exporter("onnx"), [find_exporter(name) for name in names(EXPORTERS) if name != "onnx"]
    for runtime in ("onnxruntime", "tensorrt"):
        for precision in PRECISIONS:
            if runtime == "tensorrt" and precision != "int8":
                continue  # the same file as for ONNX Runtime
            job = ExportJob(
                folder=folder,
                filename=f"{runtime}-{precision}.onnx",
                role="dense",
                network=network,
                examples=(images[:1],),
                opset=17,
                ir_version=8,
                precision=precision,
                runtime=runtime,
                calibration=[(images[:CALIBRATION],)],
            )
            start = time.perf_counter()
            artifact = onnx.export(job)
            seconds = time.perf_counter() - start
            session = onnx.open(folder / artifact.path)
            tolerance = TOLERANCES[precision]
            found = verify(network, session, (images[CALIBRATION:],), input_names=("input",), role="dense", tolerance=tolerance)
            mark = "" if found[0].passed else f" > {tolerance:g}"
            made_for = "any" if precision != "int8" else runtime
            size = f"{artifact.size_bytes / 1e6:.2f}"
            kept = str(len(artifact.kept_fp32))
            yield (
                model,
                "onnx",
                made_for,
                precision,
                "yes",
                "yes",
                f"{found[0].max_rel:.1e}{mark}",
                kept,
                size,
                f"{seconds:.1f}",
            )
            if precision == "int8" and runtime != "tensorrt":
                continue  # unsigned activations: not what TensorRT takes
            for exporter in engines:
                engine_job = replace(job, filename=f"{exporter.name}-{precision}{exporter.suffix}", source=artifact)
                start = time.perf_counter()
                yield (model, exporter.name, *engine_row(exporter.name, engine_job, start))


def engine_row(name: str, job: ExportJob, start: float) -> Row:
    """From ``for`` on."""
    exporter = find_exporter(name)
    if exporter.check():
        return ("its own GPU", job.precision, "-", "on the device", "-", "-", "-", "-")
    try:
        artifact = exporter.export(job)
    except LoritaDeployError as error:
        return ("", job.precision, f"no: {error.what}", "no", "-", "-", "-", "-")
    record = EngineRecord.load(job.folder / f"{job.filename}.json")
    seconds = f"{time.perf_counter() - start:.1f}"
    gpus = ", ".join(record.gpus)
    return (gpus, job.precision, "yes", "yes", "not run: no GPU", "-", f"{artifact.size_bytes / 1e6:.2f}", seconds)


def main() -> None:
    found: list[Row] = []
    for model in sys.argv[1:] or names(MODELS):
        with tempfile.TemporaryDirectory(prefix="exporters-") as folder:
            for row in rows(model, Path(folder)):
                print(" | ".join(row), flush=True)
                found.append(row)
    packages = ", ".join(f"{each} {version(each)}" for each in ("onnx", "onnxruntime", "tensorrt-rtx", "torch"))
    lines = [
        "# Every sample model x exporter x precision",
        "",
        f"Written by `python benchmarks/exporters.py` on {platform.machine()}, {os.cpu_count()} cores shared with other",
        "work: the seconds tell the order of magnitude only.",
        f"{packages}; opset 17, IR 8, batch 1. Verified on 8 digits against torch; tolerances:"
        f" {', '.join(f'{name} {value:g}' for name, value in TOLERANCES.items())}.",
        "TensorRT for RTX has the real TensorRT parser and builder and needs no GPU for them; its engines were not run.",
        "",
        f"| {' | '.join(HEADER)} |",
        f"|{'---|' * len(HEADER)}",
        *(f"| {' | '.join(row)} |" for row in found),
    ]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
