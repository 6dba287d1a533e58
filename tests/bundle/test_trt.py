"""Building engines with the real parser and builder of TensorRT-RTX, whose Python interface is TensorRT's; no GPU is needed.

What cannot be run without a GPU, and is not run here: loading an engine and executing it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cuda_runtime
import engines
import pytest
import trt
from runtimes import CannotRunError
from small_onnx import write_small_onnx

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: the real builder cannot be run"
)


@pytest.fixture
def builder() -> Any:
    return trt.TensorRt({"batch": 2}, package="tensorrt_rtx")


def for_ampere(config: Any) -> None:
    """TensorRT-RTX builds for GPUs that are not here."""
    import tensorrt_rtx

    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM86, 0)


def open_batch(path: Path) -> Path:
    import onnx

    model = onnx.load(write_small_onnx(path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)
    return path


@needs_builder
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("write", [write_small_onnx, open_batch], ids=["fixed batch", "open batch"])
def test_the_real_builder_builds(builder: Any, tmp_path: Path, exact: bool, write: Any) -> None:
    path, cache = write(tmp_path / "small.onnx"), tmp_path / "timings.cache"
    plan = builder.build(str(path), "fp32", 64 << 20, exact, str(cache), configure=for_ampere)
    assert len(plan) > 1000
    (tmp_path / "small.engine").write_bytes(plan)
    # Built by TensorRT for RTX, and known as that: TensorRT would not take it.
    about = {"tensorrt": builder.trt.__version__}
    assert "built by TensorRT for RTX" in str(engines.refusal(str(tmp_path / "small.engine"), about))


@needs_builder
def test_what_cannot_be_parsed_is_said(builder: Any, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(CannotRunError, match="cannot parse it"):
        builder.build(str(path), "fp32", 64 << 20, False, configure=for_ampere)


@needs_builder
def test_what_cannot_be_built_is_said_with_the_builders_words(builder: Any, tmp_path: Path) -> None:
    path = open_batch(tmp_path / "small.onnx")
    builder._configure = lambda *arguments: None  # so without the profile that an open batch needs
    with pytest.raises(CannotRunError, match=r"cannot build it: .*profile"):
        builder.build(str(path), "fp32", 64 << 20, False, configure=for_ampere)


@pytest.mark.parametrize(
    ("words", "memory"),
    [
        ("[resizingAllocator.cpp::allocate::62] Error Code 1: Cuda Runtime (out of memory)", True),
        ("OutOfMemory Error in computeCosts: 0", True),
        ("std::bad_alloc", True),
        ("Error Code 10: Could not find any implementation for node Conv_0.", False),
    ],
)
def test_want_of_memory_is_told_from_other_failures(words: str, memory: bool) -> None:
    assert bool(trt.OUT_OF_MEMORY.search(words)) == memory


def test_a_missing_package_is_said() -> None:
    with pytest.raises(CannotRunError, match="no_such_tensorrt cannot be imported"):
        trt.TensorRt({"batch": 1}, package="no_such_tensorrt")


@needs_builder
def test_without_a_device_nothing_is_loaded(builder: Any, tmp_path: Path) -> None:
    try:
        cuda_runtime.Cuda().devices()
    except (OSError, cuda_runtime.CudaError):
        with pytest.raises(CannotRunError, match="CUDA cannot be used"):
            builder.open(str(tmp_path / "small.engine"))
    else:
        pytest.skip("there is a CUDA device")
