"""Will this file load on that target? Answered here, from the target's data, each finding with the fix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..profiles import all_profiles, number
from ..records import EngineSummary, Finding, LoadCheck
from ..targets import Target
from .engine_file import REBUILD, look_at_engine
from .files import ENGINES
from .onnx_loading import check_onnx
from .weights import sha256_of


def check_loading(path: Path, target: Target) -> LoadCheck:
    """An ONNX file or an engine against a target. Raises `BadArtifact` for a file that is neither or is damaged."""
    if path.suffix in ENGINES:
        engine = look_at_engine(path)
        digest, findings = engine.sha256, tuple(check_engine(engine, target))
    else:
        findings = tuple(check_onnx(path, target))
        digest = sha256_of(path)
    version = f" {target.profile.tensorrt} ({target.profile.title})" if target.profile else ""
    return LoadCheck(
        path=str(path), sha256=digest, target=target.spelled, runtime=f"{target.runtime}{version}", findings=findings
    )


def check_engine(engine: EngineSummary, target: Target) -> Iterator[Finding]:
    """An engine runs with the TensorRT and on the kind of GPU that it was built with and for, and nowhere else."""
    if engine.offset_bytes:
        fix = f"cut it off: tail -c +{engine.offset_bytes + 1} {Path(engine.path).name} > plain.engine"
        found = (
            f"{engine.prefix} stand before the plan, which begins at byte {engine.offset_bytes:,}; TensorRT does not skip them"
        )
        yield Finding(subject="prefix", state="wrong", found=found, fix=fix)
    else:
        yield Finding(subject="prefix", state="ok", found="none: the plan begins at byte 0")
    if engine.stated_bytes is not None and engine.stated_bytes != engine.size_bytes - engine.offset_bytes:
        yield Finding(subject="size", state="wrong", found=engine.notes[-1], fix="copy the file again")
    if target.runtime != "tensorrt" or target.profile is None:
        found = f"{target.spelled} runs {target.runtime}, which reads no engines"
        yield Finding(subject="runtime", state="wrong", found=found, fix="give it the ONNX file")
        return
    if engine.runtime != "tensorrt":
        found = "built by TensorRT for RTX, which is another runtime than the TensorRT of JetPack"
        yield Finding(subject="runtime", state="wrong", found=found, fix=REBUILD)
    else:
        yield _version(engine, target)
    yield _gpu(engine, target)


def _version(engine: EngineSummary, target: Target) -> Finding:
    assert target.profile is not None
    there = target.profile.tensorrt
    if engine.version is None:
        return Finding(subject="TensorRT", state="wrong", found=f"{engine.notes[0]}; {target.spelled} has {there}", fix=REBUILD)
    if number(engine.version)[:3] == number(there)[:3]:
        return Finding(subject="TensorRT", state="ok", found=f"built by {engine.version}, {target.spelled} has {there}")
    elsewhere = [name for name in target.profiles if number(all_profiles()[name].tensorrt)[:3] == number(engine.version)[:3]]
    hint = f" (that is {target.name}@{elsewhere[0]})" if elsewhere else ""
    found = f"built by {engine.version}{hint}, {target.spelled} has {there}: an engine loads in the version that built it"
    return Finding(subject="TensorRT", state="wrong", found=found, fix=REBUILD)


def _gpu(engine: EngineSummary, target: Target) -> Finding:
    capability = target.limits.compute_capability
    there = f"SM{capability.replace('.', '')}" if capability else None
    if not engine.gpus:
        found = "not stated in the file: an engine runs on the kind of GPU that it was built on"
        return Finding(subject="GPU", state="note", found=found, fix=f"unless it was built on a {target.name}, {REBUILD}")
    built_for = ", ".join(engine.gpus)
    if there in engine.gpus:
        return Finding(subject="GPU", state="ok", found=f"built for {built_for} ({engine.gpus_from})")
    found = f"built for {built_for} ({engine.gpus_from}), {target.name} has {there}"
    return Finding(subject="GPU", state="wrong", found=found, fix=REBUILD)
