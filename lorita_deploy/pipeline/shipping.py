"""Stages export, verify, bench and bundle: artifacts, the proof that they compute the same, the race, and what ships."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.manifest import npz, pack, write_bundle
from ..measure.accuracy import artifact_accuracy
from ..measure.fidelity import TOLERANCES, flatten, require_passed, verify
from ..measure.latency import artifact_name, race
from ..ports import find_exporter
from ..records import Accuracy, Artifact, ArtifactList, Fidelity, FidelityReport, Receipt, Role, write_atomically
from ..report import words
from .acceptance import allowed_drop, as_module
from .calibrated import calibrated_on
from .choosing import ships
from .context import EVALUATION_BATCH, Build, Stage
from .engines import engines, mark_engines, own_runners, race_otherwise, run_otherwise
from .exporting import export, fp32_name, judged, preprocessing, runtime_of, sources
from .folder import sha256_of
from .ladder import make_ladder
from .races import kept_race
from .reporting import write_report

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from ..ports import Session

ROLES: tuple[Role, ...] = ("compressed", "dense")

# ---------------------------------------------------------------------------------------------- export


def _export_key(build: Build) -> dict[str, Any]:
    options = build.options
    return {
        "compressed": sha256_of(build.folder / "compressed.safetensors"),
        "plan": sha256_of(build.folder / "plan.json"),
        "dense": sha256_of(build.folder / "collapsed.safetensors"),
        "target": build.target.model_dump(),
        "images": (preprocessing(build), build.data.classes),
        "opset": build.opset,
        "ir": build.ir_version,
        "precision": build.precision,
        "accepted": None if build.precision == "fp32" else (allowed_drop(build), calibrated_on(build)),
        "batch": (options.batch, options.dynamic_batch),
        "simplify": options.simplify,
        "exporter": version("onnx"),
        "producer": version("lorita-deploy"),
    }


def _run_export(build: Build) -> str:
    modules: dict[Role, nn.Module] = {"compressed": build.compressed.module, "dense": build.dense}
    folder = build.folder.path
    artifacts = tuple(judged(build, export(build, modules[role], role, folder)) for role in ROLES)
    reference: tuple[Artifact, ...] = ()
    if build.precision != "fp32":
        reference = tuple(
            export(build, modules[role], role, folder, precision="fp32", filename=fp32_name(role)) for role in ROLES
        )
    artifacts = mark_engines(build, artifacts)
    built = engines(build, artifacts)
    ArtifactList(artifacts=artifacts, reference=reference, engines=built).save(build.folder / "artifacts.json")
    inputs = [tensor.cpu().numpy() for tensor in golden_inputs(build)]
    write_atomically(build.folder / "golden" / "inputs.npz", npz(dict(zip(build.task.input_names, inputs, strict=True))))
    for role in ROLES:
        outputs = dict(zip(build.task.output_names, reference_outputs(build, modules[role]), strict=True))
        for name in (role, Path(fp32_name(role)).stem) if reference else (role,):
            write_atomically(build.folder / "golden" / f"outputs-{name}.npz", npz(outputs))
    shipped, dense = artifacts
    form = f"opset {shipped.opset}, IR {shipped.ir_version}, {shipped.precision}"
    refused = any(note.startswith("would not load") for note in shipped.notes)
    fits = f"WOULD NOT LOAD on {build.target.spelled} (see: targets check)" if refused else f"for {build.target.spelled}"
    kept = f", {len(shipped.kept_fp32)} nodes kept in fp32" if shipped.kept_fp32 else ""
    return f"{form}{kept}, {words.size(shipped.size_bytes)} (dense {words.size(dense.size_bytes)}), {fits}"


def golden_inputs(build: Build) -> tuple[Any, ...]:
    """Real examples that travel with the artifact."""
    return build.task.golden or next(iter(build.task.calibration))


def reference_outputs(build: Build, module: nn.Module) -> list[np.ndarray[Any, Any]]:
    """What torch computes for the golden inputs, on the CPU."""
    import torch

    module = module.cpu().eval()
    with torch.inference_mode():
        found = module(*(tensor.cpu() for tensor in golden_inputs(build)))
    module.to(build.device)
    return [value.numpy() for value in flatten(found)]


# ---------------------------------------------------------------------------------------------- verify


def _verify_key(build: Build) -> dict[str, Any]:
    return {
        "artifacts": sha256_of(build.folder / "artifacts.json"),
        "golden": sha256_of(build.folder / "golden" / "inputs.npz"),
        "data": build.data.content_sha256,
        "tolerance": TOLERANCES,
        "onnxruntime": version("onnxruntime"),
    }


def _run_verify(build: Build) -> str:
    modules: dict[Role, nn.Module] = {"compressed": build.compressed.module, "dense": build.dense}
    checks: list[Fidelity] = []
    accuracies: dict[Role, Accuracy] = {}
    exact: dict[Role, Accuracy] = {}
    for artifact in build.artifacts:
        session = build.exporter.open(build.folder / artifact.path)
        checks += _check(build, modules[artifact.role], artifact, session)
        found = _judge_artifact(build, artifact, session)
        if found is not None:
            accuracies[artifact.role] = found
    further: dict[str, tuple[Fidelity, ...]] = {}
    for artifact in build.exported.reference:
        session = build.exporter.open(build.folder / artifact.path)
        further[artifact.path] = _check(build, modules[artifact.role], artifact, session)
        require_passed(further[artifact.path], build.folder / artifact.path)
        if (found := _judge_artifact(build, artifact, session)) is not None:
            exact[artifact.role] = found
    for name, found_otherwise in run_otherwise(build).items():
        for artifact in found_otherwise:
            session = find_exporter(name).open(build.folder / artifact.path)
            further[artifact.path] = _check(build, modules[artifact.role], artifact, session)
            require_passed(further[artifact.path], build.folder / artifact.path)
    report = FidelityReport(
        artifacts=tuple(build.artifacts),
        checks=tuple(checks),
        accuracy=accuracies,
        reference_accuracy=exact,
        further=further,
    )
    report.save(build.folder / "fidelity.json")
    require_passed(checks, build.folder.path)
    worst = max(check.max_rel for check in checks)
    right = words.percent(accuracies["compressed"]) if accuracies else "not judged"
    return f"largest relative difference {worst:.1e} (tolerance {TOLERANCES[build.precision]:g}); {right}"


def _check(build: Build, module: nn.Module, artifact: Artifact, session: Session) -> tuple[Fidelity, ...]:
    """On real inputs and on random ones; int8 on real ones alone, which its ranges were made for."""
    found = verify(
        module.cpu(),
        session,
        tuple(tensor.cpu() for tensor in golden_inputs(build)),
        input_names=build.task.input_names,
        role=artifact.role,
        batch=build.options.batch,
        tolerance=TOLERANCES[artifact.precision],
    )
    module.to(build.device)
    return found[:1] if artifact.precision == "int8" else found


def _judge_artifact(build: Build, artifact: Artifact, session: Session) -> Accuracy | None:
    """Accuracy of the artifact itself on the test images, or on those that there are; for tasks of one's own in fp32, of the
    module."""
    if build.own_task is None and build.data_name is not None:
        batches = build.dataset.batches("test", EVALUATION_BATCH)
        return artifact_accuracy(session, build.task.input_names, batches, "test", batch=build.options.batch)
    module = build.compressed.module if artifact.role == "compressed" else build.dense
    if artifact.precision != "fp32" or build.own_task is None:
        module = as_module(session, build.task.input_names, build.options.batch)
    return (build.task.test or build.task.evaluate)(module)


# ---------------------------------------------------------------------------------------------- bench


def _bench_key(build: Build) -> dict[str, Any]:
    return {
        "artifacts": sha256_of(build.folder / "artifacts.json"),
        "host": build.host_key,
        "settings": build.settings.model_dump(),
    }


def _run_bench(build: Build) -> str:
    named = {artifact_name(artifact): artifact for artifact in build.artifacts}
    named |= {Path(artifact.path).stem: artifact for artifact in build.exported.reference}

    def measure() -> Receipt:
        return race(
            build.board,
            build.folder.path,
            named,
            baseline="dense",
            settings=build.settings,
            golden=build.folder / "golden",
            tolerance=TOLERANCES[build.precision],
            kind=build.kind,
            model=build.options.model,
        )

    receipt = kept_race(build, {"artifacts": {name: artifact.sha256 for name, artifact in named.items()}}, measure)
    receipt.save(build.folder / "receipt.json")
    winner = ships(build, receipt)
    write_atomically(build.folder / "model.onnx", (build.folder / winner.path).read_bytes())
    found = receipt.ratios[0]
    where = "here (cpu)" if build.here else f"on {build.board.name}"
    spelled = f" in {winner.precision}" if build.asked_precision != "fp32" else ""
    others = [f"; as {name} {words.speed(each.ratios[0])}" for name, each in race_otherwise(build).items()]
    return f"{words.speed(found)} {where}; ships the {winner.role} network{spelled}{''.join(others)}"


# ---------------------------------------------------------------------------------------------- bundle


def _bundle_key(build: Build) -> dict[str, Any]:
    names = ("artifacts.json", "fidelity.json", "receipt.json", "plan.json", "model.onnx", "compressed.json")
    return {name: sha256_of(build.folder / name) for name in names} | {
        "data": build.data.content_sha256,
        "images": (preprocessing(build), build.data.classes),
        "producer": version("lorita-deploy"),
        "required": build.options.require_speedup,
        "rungs": build.options.rungs,
    }


def _run_bundle(build: Build) -> str:
    import numpy as np

    golden = build.folder / "golden"
    first = ships(build, build.receipt)
    back_to_fp32 = build.precision != "fp32" and first.precision == "fp32"
    precision = "fp32" if back_to_fp32 else build.precision
    ladder = make_ladder(build, precision, TOLERANCES[precision])
    shipped = sorted(build.exported.reference if back_to_fp32 else build.artifacts, key=lambda each: each != first)
    further = {} if back_to_fp32 else run_otherwise(build)
    outputs = {role: dict(np.load(golden / f"outputs-{role}.npz")) for role in ROLES}
    fidelity = FidelityReport.load(build.folder / "fidelity.json")
    accuracy = fidelity.reference_accuracy if back_to_fp32 else fidelity.accuracy
    folder = build.folder / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    write_bundle(
        folder,
        artifacts=[*shipped, *(rung.artifact for rung in ladder)],
        artifact_root=build.folder.path,
        golden_inputs=dict(np.load(golden / "inputs.npz")),
        golden_outputs=outputs | {rung.name: rung.outputs for rung in ladder},
        model=build.options.model,
        target=build.target.name,
        producer=f"lorita-deploy {version('lorita-deploy')}",
        sources=sources(build, "compressed"),
        preprocessing=preprocessing(build),
        classes=build.data.classes,
        tolerance=TOLERANCES[precision],
        runtime=runtime_of(build),
        threads=build.options.threads,
        accuracy=accuracy | {rung.name: rung.accuracy for rung in ladder},
        further=further,
        runners={name: runner for name, runner in own_runners(build).items() if name in further},
    )
    packed = pack(folder, build.folder / "bundle.tar.gz")
    report = write_report(build)
    return f"{packed.name}, {words.size(packed.stat().st_size)}; {report.headline}"


GOLDEN_FILES = ("golden/inputs.npz", *(f"golden/outputs-{role}.npz" for role in ROLES))


def _exported_files(build: Build) -> tuple[str, ...]:
    both = () if build.precision == "fp32" else tuple(fp32_name(role) for role in ROLES)
    return ("artifacts.json", "compressed.onnx", "dense.onnx", *both, *GOLDEN_FILES)


EXPORT = Stage("export", _exported_files, _export_key, _run_export)
VERIFY = Stage("verify", lambda build: ("fidelity.json",), _verify_key, _run_verify)
BENCH = Stage("bench", lambda build: ("receipt.json", "model.onnx"), _bench_key, _run_bench)
BUNDLE = Stage("bundle", lambda build: ("bundle.tar.gz", "report.json", "report.md", "report.html"), _bundle_key, _run_bundle)
