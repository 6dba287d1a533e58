"""Device memory, streams, events and graphs of CUDA through ctypes on libcudart, which every JetPack has.

Neither pycuda nor cuda-python is on a stock board; the few functions needed have kept their C signatures from CUDA 10.2
to 13, but for cudaGraphInstantiate. Addresses and handles are plain integers. Valid Python 3.6.
"""

import ctypes
import ctypes.util
import glob
import os
import sys

from typing import Any, Callable, Dict, List, Optional

from runtimes import CannotRunError

LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2")
PLACES = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/*/lib", "/usr/local/cuda-*/targets/*/lib")
PACKAGES = ("nvidia/cu*/lib", "nvidia/cuda_runtime/lib")
"""Where pip puts it, under site-packages."""

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # cudaMemcpyKind
CAPTURE_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal
STREAM_NON_BLOCKING = 1
MAJOR, MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, -Minor
MULTIPROCESSORS = 16  # cudaDevAttrMultiProcessorCount
MEMORY_ALLOCATION = 2  # cudaErrorMemoryAllocation
INSTANTIATE_WITH_FLAGS = 11040
"""CUDA version from which the function of that name exists; before, cudaGraphInstantiate takes five arguments."""

Pointer, Size, Int = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_TO = ctypes.POINTER
SIGNATURES: Dict[str, Any] = {
    "cudaRuntimeGetVersion": (_TO(Int),),
    "cudaDriverGetVersion": (_TO(Int),),
    "cudaGetDeviceCount": (_TO(Int),),
    "cudaGetDevice": (_TO(Int),),
    "cudaGetDeviceProperties": (Pointer, Int),
    "cudaDeviceGetAttribute": (_TO(Int), Int, Int),
    "cudaMemGetInfo": (_TO(Size), _TO(Size)),
    "cudaMalloc": (_TO(Pointer), Size),
    "cudaFree": (Pointer,),
    "cudaMallocHost": (_TO(Pointer), Size),
    "cudaFreeHost": (Pointer,),
    "cudaMemcpyAsync": (Pointer, Pointer, Size, Int, Pointer),
    "cudaStreamCreateWithFlags": (_TO(Pointer), ctypes.c_uint),
    "cudaStreamSynchronize": (Pointer,),
    "cudaStreamDestroy": (Pointer,),
    "cudaEventCreate": (_TO(Pointer),),
    "cudaEventRecord": (Pointer, Pointer),
    "cudaEventSynchronize": (Pointer,),
    "cudaEventElapsedTime": (_TO(ctypes.c_float), Pointer, Pointer),
    "cudaEventDestroy": (Pointer,),
    "cudaStreamBeginCapture": (Pointer, Int),
    "cudaStreamEndCapture": (Pointer, _TO(Pointer)),
    "cudaGraphLaunch": (Pointer, Pointer),
    "cudaGraphDestroy": (Pointer,),
    "cudaGraphExecDestroy": (Pointer,),
}


class CudaError(CannotRunError):  # type: ignore[misc]
    """A call of the CUDA runtime failed; ``code`` is its cudaError_t."""

    def __init__(self, call: str, code: int, words: str) -> None:
        CannotRunError.__init__(self, "%s: %s (CUDA error %d)" % (call, words, code))
        self.code = code


def candidates() -> List[str]:
    """Names and paths that libcudart may be loaded from, the loader's own first."""
    found = ctypes.util.find_library("cudart")
    places = [found] if found else []
    places += LIBRARIES
    for place in PLACES:
        places += sorted(glob.glob(os.path.join(place, "libcudart.so*")), reverse=True)
    for folder in sys.path:
        for place in PACKAGES:
            places += sorted(glob.glob(os.path.join(folder, place, "libcudart.so*")))
    return places


class Cuda:
    """The CUDA runtime. Raises `OSError` where there is no libcudart; the first device is used."""

    def __init__(self) -> None:
        problem: Optional[OSError] = None
        for place in candidates():
            try:
                self.library = ctypes.CDLL(place)
                break
            except OSError as error:
                problem = problem or error
        else:
            raise OSError("libcudart was not found (%s)" % problem)
        for name, kinds in SIGNATURES.items():
            function = getattr(self.library, name)
            function.argtypes, function.restype = kinds, Int
        self.library.cudaGetErrorString.argtypes, self.library.cudaGetErrorString.restype = (Int,), ctypes.c_char_p
        self.version = self._get("cudaRuntimeGetVersion", Int())

    def call(self, name: str, *arguments: Any) -> None:
        """Raises `CudaError` unless the function returns cudaSuccess, `MemoryError` where the device has no more of it."""
        code = getattr(self.library, name)(*arguments)
        if code == MEMORY_ALLOCATION:
            raise MemoryError("%s: out of memory" % name)
        if code:
            raise CudaError(name, code, self.library.cudaGetErrorString(code).decode("ascii", "replace"))

    def _get(self, name: str, out: Any, *arguments: Any) -> Any:
        self.call(name, ctypes.byref(out), *arguments)
        return out.value

    # ------------------------------------------------------------------------------------------ the device

    def devices(self) -> int:
        return int(self._get("cudaGetDeviceCount", Int()))

    def about(self) -> Dict[str, str]:
        """Name, compute capability and size of the device, versions of CUDA and of what its driver supports.

        The size, because the GPUs of all Orins have one name and one compute capability.
        """
        device = self._get("cudaGetDevice", Int())
        properties = ctypes.create_string_buffer(8192)  # cudaDeviceProp has grown with every version; the name comes first
        self.call("cudaGetDeviceProperties", properties, device)
        capability = [self._get("cudaDeviceGetAttribute", Int(), which, device) for which in (MAJOR, MINOR)]
        return {
            "gpu": properties.raw[:256].split(b"\0")[0].decode("utf-8", "replace"),
            "sm": "%d.%d" % tuple(capability),
            "multiprocessors": str(self._get("cudaDeviceGetAttribute", Int(), MULTIPROCESSORS, device)),
            "cuda": _dotted(self.version),
            "cuda-driver": _dotted(self._get("cudaDriverGetVersion", Int())),
        }

    def memory_bytes(self) -> List[int]:
        """Free and total. On a Jetson this is the memory that the processor uses, too."""
        free, total = Size(), Size()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return [free.value, total.value]

    # ------------------------------------------------------------------------------------------ memory, streams, events

    def malloc(self, size: int) -> int:
        return int(self._get("cudaMalloc", Pointer(), size))

    def malloc_host(self, size: int) -> int:
        """Memory that pages never leave, which copies need in order not to wait."""
        return int(self._get("cudaMallocHost", Pointer(), size))

    def copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self.call("cudaMemcpyAsync", to, source, size, kind, stream)

    def stream(self) -> int:
        return int(self._get("cudaStreamCreateWithFlags", Pointer(), STREAM_NON_BLOCKING))

    def event(self) -> int:
        return int(self._get("cudaEventCreate", Pointer()))

    def synchronize(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Between two recorded events, after the second one has come to pass."""
        self.call("cudaEventSynchronize", end)
        return float(self._get("cudaEventElapsedTime", ctypes.c_float(), start, end))

    # ------------------------------------------------------------------------------------------ graphs

    def capture(self, stream: int, enqueue: Callable[[int], None]) -> int:
        """What ``enqueue`` puts on ``stream``, as a graph ready to launch. Raises `CudaError` where that cannot be."""
        self.call("cudaStreamBeginCapture", stream, CAPTURE_THREAD_LOCAL)
        graph: Any = Pointer()
        problem: Optional[Exception] = None
        try:
            enqueue(stream)
        except Exception as error:
            problem = error
        self.call("cudaStreamEndCapture", stream, ctypes.byref(graph))  # always, or the stream stays unusable
        if problem:
            raise problem
        executable = Pointer()
        try:
            if self.version >= INSTANTIATE_WITH_FLAGS:
                self.call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
            else:
                self.call("cudaGraphInstantiate", ctypes.byref(executable), graph, None, None, Size(0))
        finally:
            self.call("cudaGraphDestroy", graph)
        return int(executable.value or 0)


def _dotted(version: int) -> str:
    """12060 is 12.6."""
    return "%d.%d" % (version // 1000, version % 1000 // 10)
