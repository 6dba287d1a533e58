"""The NVIDIA GPU of this machine, asked through the driver's own library: no CUDA package is needed to find out."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

DRIVER = "libcuda.so.1"
MAJOR, MINOR, MULTIPROCESSORS = 75, 76, 16
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR and _MULTIPROCESSOR_COUNT of the driver API."""


@dataclass(frozen=True)
class CudaDevice:
    """The first CUDA device."""

    name: str
    capability: str
    """Compute capability as TensorRT spells it, such as ``SM87``."""
    multiprocessors: int
    """Tells GPUs of one name apart: those of all Orins have the same."""
    cuda: str
    """Newest CUDA version that the driver supports, such as ``12.6``."""


def find_device() -> CudaDevice | str:
    """The first CUDA device, or what keeps one from being used."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return f"no NVIDIA driver is installed ({DRIVER} does not load)"
    count, number, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if error := driver.cuInit(0):
        return f"the NVIDIA driver does not start (error {error})"
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no GPU"
    driver.cuDeviceGet(ctypes.byref(number), 0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), number)
    found = []
    for attribute in (MAJOR, MINOR, MULTIPROCESSORS):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, number)
        found.append(value.value)
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    major, minor, multiprocessors = found
    called = name.value.decode(errors="replace")
    return CudaDevice(name=called, capability=f"SM{major}{minor}", multiprocessors=multiprocessors, cuda=cuda)
