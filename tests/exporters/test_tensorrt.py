"""The TensorRT exporters: real engines by TensorRT for RTX, which parses and builds without a GPU; what is missing, said.

Every registered model goes through them in tests/test_parity.py.
"""

import dataclasses
import json

import pytest
import torch
from lorita_exporters.cuda_device import CudaDevice
from lorita_exporters.tensorrt_build import timing_cache
from lorita_exporters.tensorrt_open import REBUILD, require_loadable
from published_schemas import obeys
from torch import nn

from lorita_deploy.errors import BadArtifact, ExporterUnavailable
from lorita_deploy.ports import ExportJob, find_exporter
from lorita_deploy.records import EngineRecord

ONNX, RTX, CLASSIC = (find_exporter(name) for name in ("onnx", "tensorrt-rtx", "tensorrt"))
NO_RTX = pytest.mark.skipif(bool(RTX.check()), reason="; ".join(RTX.check()))
NO_GPU = any("NVIDIA" in each for each in CLASSIC.check())
JOB = {
    "filename": "dense.engine", "role": "dense", "network": None, "examples": (), "opset": 17, "ir_version": 8,
    "precision": "fp32",
}  # fmt: skip


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 5)).eval()


def export_onnx(folder, network, shape, precision="fp32", **changes):
    images = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    job = ExportJob(
        folder=folder,
        filename="dense.onnx",
        role="dense",
        network=network,
        examples=(images[:1],),
        opset=17,
        ir_version=8,
        precision=precision,
        runtime="tensorrt",
        calibration=[(images,)],
        simplify=False,
        **changes,
    )
    return dataclasses.replace(job, filename="dense.engine", source=ONNX.export(job))


@NO_RTX
def test_nothing_stands_before_the_engine_and_its_gpus_are_recorded(tmp_path):
    job = export_onnx(tmp_path, small(), (3, 8, 8))
    RTX.export(dataclasses.replace(job, capabilities=("SM86",), workspace_bytes=64 << 20))
    assert (tmp_path / "dense.engine").read_bytes()[1:4] == b"trt"
    record = EngineRecord.load(tmp_path / "dense.engine.json")
    assert obeys(tmp_path / "dense.engine.json") == "engine"
    assert record.gpus == ("SM86",)
    assert record.workspace_bytes == 64 << 20
    assert record.runtime == "tensorrt-rtx"


@NO_RTX
def test_a_dynamic_batch_becomes_a_profile(tmp_path):
    RTX.export(export_onnx(tmp_path, small(), (3, 8, 8), dynamic_batch=True))
    assert (tmp_path / "dense.engine").exists()


@NO_RTX
def test_what_tensorrt_cannot_read_is_told_in_its_words_and_leaves_nothing(tmp_path):
    job = export_onnx(tmp_path, small(), (3, 8, 8))
    (tmp_path / "dense.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(BadArtifact, match="cannot read it"):
        RTX.export(job)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.onnx"]


@NO_RTX
def test_a_gpu_that_it_does_not_build_for_is_an_error(tmp_path):
    job = export_onnx(tmp_path, small(), (3, 8, 8))
    with pytest.raises(ExporterUnavailable, match=r"builds for .*SM86.*not for SM87"):
        RTX.export(dataclasses.replace(job, capabilities=("SM87",)))


@NO_RTX
@pytest.mark.skipif(not NO_GPU, reason="a GPU is here: the engine would run")
def test_running_needs_a_gpu_and_says_so(tmp_path):
    RTX.export(export_onnx(tmp_path, small(), (3, 8, 8)))
    with pytest.raises(ExporterUnavailable, match="runs on a GPU only"):
        RTX.open(tmp_path / "dense.engine")


@NO_RTX
def test_an_engine_of_another_gpu_or_version_is_told_before_it_is_loaded(tmp_path):
    job = export_onnx(tmp_path, small(), (3, 8, 8))
    RTX.export(dataclasses.replace(job, capabilities=("SM86",)))
    path, version = tmp_path / "dense.engine", EngineRecord.load(tmp_path / "dense.engine.json").version
    require_loadable(path, "tensorrt_rtx", version, "SM86")
    for module, other, capability, words in (
        ("tensorrt_rtx", version, "SM89", "built for SM86, and this GPU is SM89"),
        ("tensorrt_rtx", "9.9.9", "SM86", f"built by tensorrt_rtx {version}, and this is 9.9.9"),
        ("tensorrt", version, "SM86", "an engine of tensorrt_rtx, and this is tensorrt"),
    ):
        with pytest.raises(BadArtifact, match=words) as caught:
            require_loadable(path, module, other, capability)
        assert caught.value.fix == REBUILD
    (tmp_path / "dense.engine.json").unlink()
    require_loadable(path, "tensorrt_rtx", version, "SM89")  # nothing says for which GPU: TensorRT will
    with pytest.raises(BadArtifact, match="No such file"):
        require_loadable(tmp_path / "none.engine", "tensorrt", version, "SM86")


def test_timings_are_kept_apart_by_device_cuda_and_tensorrt(tmp_path):
    found = set()
    for device in (
        CudaDevice("Orin", "SM87", 8, "12.6"),
        CudaDevice("Orin", "SM87", 16, "12.6"),
        CudaDevice("Orin", "SM87", 8, "12.8"),
        CudaDevice("Xavier", "SM72", 6, "12.6"),
    ):
        timings = CLASSIC._timings(ExportJob(**JOB, folder=tmp_path, timing_caches=tmp_path / "timings"), device)
        found |= {timing_cache(timings, version, []) for version in ("10.3.0", "10.13.3")}
    assert len(found) == 8
    assert (tmp_path / "timings").is_dir()
    (tmp_path / "file").write_text("in the way")
    said = []
    timings = CLASSIC._timings(ExportJob(**JOB, folder=tmp_path, timing_caches=tmp_path / "file/x"), device)
    assert timing_cache(timings, "10.3.0", said) is None
    assert "timings are not kept" in said[0]


@pytest.mark.skipif(not NO_GPU, reason="a GPU is here")
def test_without_a_gpu_the_classic_exporter_says_exactly_what_is_missing(tmp_path):
    missing = CLASSIC.check()
    assert any("libcuda.so.1 does not load" in each or "finds no GPU" in each or "does not start" in each for each in missing)
    job = export_onnx(tmp_path, small(), (3, 8, 8))
    with pytest.raises(ExporterUnavailable) as caught:
        CLASSIC.export(job)
    assert all(each in str(caught.value) for each in missing)


@NO_RTX
def test_the_record_beside_the_engine_is_plain_json(tmp_path):
    RTX.export(export_onnx(tmp_path, small(), (3, 8, 8)))
    body = json.loads((tmp_path / "dense.engine.json").read_text())
    assert body["schema"] == "lorita-deploy/engine/1"
    assert body["version"].count(".") >= 2
