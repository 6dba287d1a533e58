"""CUDA through ctypes: the real library's symbols everywhere, memory, events and graphs where there is a device."""

from __future__ import annotations

import ctypes

import cuda_runtime
import pytest

DEVICE_TO_DEVICE = 3


@pytest.fixture
def library() -> cuda_runtime.Cuda:
    try:
        return cuda_runtime.Cuda()
    except OSError as error:
        pytest.skip(f"no CUDA runtime on this machine: {error}")


@pytest.fixture
def device(library: cuda_runtime.Cuda) -> cuda_runtime.Cuda:
    try:
        library.devices()
    except cuda_runtime.CudaError as error:
        pytest.skip(f"no CUDA device: {error}")
    return library


def test_every_function_is_in_the_library(library: cuda_runtime.Cuda) -> None:
    assert library.version >= 10020
    for name in cuda_runtime.SIGNATURES:
        assert getattr(library.library, name).argtypes
    new = library.version >= cuda_runtime.INSTANTIATE_WITH_FLAGS
    assert hasattr(library.library, "cudaGraphInstantiateWithFlags" if new else "cudaGraphInstantiate")


def test_failures_speak(library: cuda_runtime.Cuda) -> None:
    with pytest.raises(cuda_runtime.CudaError, match=r"cudaGetDeviceProperties: .* \(CUDA error \d+\)") as caught:
        library.call("cudaGetDeviceProperties", ctypes.create_string_buffer(8192), 9999)
    assert caught.value.code


@pytest.mark.gpu
def test_memory_events_and_graphs(device: cuda_runtime.Cuda) -> None:
    size, stream, start, end = 1 << 20, device.stream(), device.event(), device.event()
    here, there, other = device.malloc_host(size), device.malloc(size), device.malloc(size)
    view = (ctypes.c_char * size).from_address(here)
    view.raw = bytes(range(256)) * (size // 256)
    device.copy(there, here, size, cuda_runtime.HOST_TO_DEVICE, stream)
    graph = device.capture(stream, lambda on: device.copy(other, there, size, DEVICE_TO_DEVICE, on))
    device.call("cudaEventRecord", start, stream)
    device.call("cudaGraphLaunch", graph, stream)
    device.call("cudaEventRecord", end, stream)
    assert device.elapsed_ms(start, end) > 0
    ctypes.memset(here, 0, size)
    device.copy(here, other, size, cuda_runtime.DEVICE_TO_HOST, stream)
    device.synchronize(stream)
    assert view.raw == bytes(range(256)) * (size // 256)
    free, total = device.memory_bytes()
    assert 0 < free < total
    assert all(device.about()[name] for name in ("gpu", "sm", "multiprocessors", "cuda", "cuda-driver"))
    device.call("cudaGraphExecDestroy", graph)
    for address in (there, other):
        device.call("cudaFree", address)
    device.call("cudaFreeHost", here)
    device.call("cudaStreamDestroy", stream)
