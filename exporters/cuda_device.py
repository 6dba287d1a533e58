"""The NVIDIA GPU of this machine, asked through the driver's own library: no CUDA package is needed to find out."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

DRIVER = "libcuda.so.1"
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the driver API."""


@dataclass(frozen=True)
class CudaDevice:
    """The first CUDA device."""

    name: str
    capability: str
    """Compute capability as TensorRT spells it, such as ``SM87``."""
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
    parts = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, number)
        parts.append(str(value.value))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return CudaDevice(name=name.value.decode(errors="replace"), capability=f"SM{''.join(parts)}", cuda=cuda)
