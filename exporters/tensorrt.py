"""Exporters ``tensorrt`` and ``tensorrt-rtx``: an engine for an NVIDIA GPU, from the ONNX file.

The engine is pure (what TensorRT wrote and nothing before it); what is known of it stands in a record beside it,
``<engine>.json``, and the engine inspector's layers in ``<engine>.layers.json`` where a GPU is here to read them.

``tensorrt`` builds for the GPU it runs on and no other, so an engine for a board is built on that board. ``tensorrt-rtx``
builds ahead of time for GeForce and RTX GPUs, with none in this machine; it has no timing cache.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorita_deploy.errors import BadArtifact, ExporterUnavailable, OutOfResource
from lorita_deploy.ports import ExportJob, Session
from lorita_deploy.records import Artifact, EngineRecord, Precision, write_atomically

from .cuda_device import CudaDevice, find_device
from .tensorrt_open import open_engine

AHEAD_OF_TIME = ("SM80", "SM86", "SM89", "SM120")
"""GPUs that TensorRT for RTX builds for where no GPU is here and none is named: Ampere to Blackwell (Turing, SM75, has
no fp32 matrix product there)."""
TIMEOUT_S = 3600


@dataclass(frozen=True)
class TensorRTExporter:
    """Implements `lorita_deploy.ports.Exporter`."""

    name: str
    module: str
    """The Python package to import."""
    summary: str
    needs_gpu: bool
    source: str = "onnx"
    suffix: str = ".engine"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")

    def check(self) -> list[str]:
        """What is missing to build an engine here."""
        missing = []
        if find_spec(self.module) is None:
            remedy = f'pip install "lorita-deploy[{self.name}]"'
            on_boards = "; JetPack brings it for the system's own Python" if self.needs_gpu else ""
            missing.append(f"the Python package {self.module} is missing: {remedy}{on_boards}")
        device = find_device() if self.needs_gpu else None
        if isinstance(device, str):
            missing.append(f"{device}: build where the GPU is")
        return missing

    def export(self, job: ExportJob) -> Artifact:
        """Write ``job.folder / job.filename`` from ``job.source``, an ONNX file in the same folder.

        Raises `ExporterUnavailable` (package or GPU missing, a GPU it does not build for), `BadArtifact` (TensorRT does not
        take the file), `OutOfResource` (memory, disk, time).
        """
        if missing := self.check():
            raise ExporterUnavailable("; ".join(missing), where=f"exporter {self.name}", fix="install what is named")
        if job.source is None:
            raise ValueError("an engine is built from an ONNX file: job.source")
        folder, device = Path(job.folder), find_device()
        with tempfile.TemporaryDirectory(prefix="engine-") as name:
            place = Path(name)
            request = self._request(job, place, device if isinstance(device, CudaDevice) else None)
            answer = self._run(request, place, str(job.source.path))
            content = (place / "engine").read_bytes()
            layers = (place / "layers.json").read_bytes() if answer["profiled"] else None
        write_atomically(folder / job.filename, content)
        if layers is not None:
            write_atomically(folder / f"{job.filename}.layers.json", layers)
        artifact = job.source.model_copy(
            update={
                "path": job.filename,
                "exporter": self.name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "size_bytes": len(content),
                "notes": (),
            }
        )
        here = device if isinstance(device, CudaDevice) else None
        EngineRecord(
            artifact=artifact,
            runtime=self.name,
            version=answer["version"],
            gpus=tuple(request["capabilities"]) or (here.capability if here else "",),
            device=here.name if here and not request["capabilities"] else None,
            cuda=here.cuda if here else None,
            source_sha256=job.source.sha256,
            workspace_bytes=job.workspace_bytes,
            timing_cache=answer["timing_cache"],
            network_layers=answer["network_layers"],
            layers_file=f"{job.filename}.layers.json" if layers is not None else None,
            parse_seconds=answer["parse_seconds"],
            build_seconds=answer["build_seconds"],
            messages=tuple(answer["messages"]),
        ).save(folder / f"{job.filename}.json")
        return artifact

    def open(self, path: Path) -> Session:
        """Run the engine on this machine's GPU, through polygraphy. Raises `ExporterUnavailable`, `BadArtifact`."""
        device = find_device()
        if isinstance(device, str):
            raise ExporterUnavailable(f"an engine runs on a GPU only: {device}", where=path, fix="run it on its device")
        if missing := [each for each in (self.module, "polygraphy") if find_spec(each) is None]:
            fix = f'pip install "lorita-deploy[{self.name}]"'
            raise ExporterUnavailable(f"missing: {', '.join(missing)}", where=path, fix=fix)
        return open_engine(path, self.module, device.capability)

    def _request(self, job: ExportJob, place: Path, device: CudaDevice | None) -> dict[str, Any]:
        assert job.source is not None
        capabilities = [] if self.needs_gpu else list(job.capabilities or (() if device else AHEAD_OF_TIME))
        return {
            "module": self.module,
            "onnx": str((Path(job.folder) / job.source.path).resolve()),
            "engine": str(place / "engine"),
            "layers": str(place / "layers.json"),
            "answer": str(place / "answer.json"),
            "workspace_bytes": job.workspace_bytes,
            "batch": job.batch,
            "capabilities": capabilities,
            "timings": self._timings(job, device),
            "gpu": device is not None and not capabilities,
        }

    def _timings(self, job: ExportJob, device: CudaDevice | None) -> dict[str, str] | None:
        """Where timings are kept, and the device and CUDA that they hold for; the version of TensorRT, which they hold for
        as well, is that of the library that builds."""
        if not self.needs_gpu or device is None or job.timing_caches is None:
            return None
        about = f"{device.name} {device.capability} {device.multiprocessors} {device.cuda}"
        return {"folder": str(job.timing_caches.resolve()), "exporter": self.name, "about": about}

    def _run(self, request: dict[str, Any], place: Path, source: str) -> dict[str, Any]:
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "lorita_exporters.tensorrt_build", str(place / "request.json")]
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise OutOfResource(f"{self.name} gave no engine within {TIMEOUT_S} s", where=source) from error
        answer = place / "answer.json"
        if not answer.exists():
            if done.returncode < 0:
                fix = "free memory, or give the target file less [limits] memory_bytes"
                raise OutOfResource(f"{self.name} was ended by signal {-done.returncode}", where=source, fix=fix)
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise ExporterUnavailable(f"{self.name} cannot be used: {said[-1] if said else 'no message'}", where=source)
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        if "failed" in found:
            if found["failed"] == "memory" or "out of memory" in found["what"].lower():
                raise OutOfResource(f"{self.name}: {found['what']}", where=source, fix="end other programs, or add swap")
            if found["failed"] == "gpu":
                raise ExporterUnavailable(f"{self.name} cannot be used: {found['what']}", where=source)
            verb = "read" if found["failed"] == "parse" else "build an engine from"
            raise BadArtifact(f"{self.name} cannot {verb} it: {found['what']}", where=source, fix="lorita-deploy targets check")
        return found


TENSORRT = TensorRTExporter(
    "tensorrt", "tensorrt", "TensorRT engine, built on the GPU that runs it (JetPack, data-centre and desktop GPUs)", True
)
TENSORRT_RTX = TensorRTExporter(
    "tensorrt-rtx", "tensorrt_rtx", "TensorRT for RTX engine for GeForce and RTX GPUs, built without one", False
)
