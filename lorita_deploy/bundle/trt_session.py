"""Running an engine of TensorRT in memory held through `cuda_runtime`: times with transfers, times without, and layer times.

Two programming interfaces, newest first: tensors by name (8.5 and later, the only one since 10) and bindings by index
(before 8.5: JetPack 4). Valid Python 3.6.
"""

import ctypes

from typing import Any, Dict, List, Tuple

import clock
import cuda_runtime

from runtimes import CannotRunError, NodeRun

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""`trt.nptype` fails in TensorRT before 8.6 with numpy from 1.24."""
BACK_TO_BACK_S = 0.2
"""How long throughput is measured in one go."""


def open_session(trt: Any, runtime: Any, engine: Any, context: Any, device: Any, batch: int, profile: bool) -> "Session":
    """Memory, stream and graph for an engine that was loaded. Raises `CannotRunError`, `MemoryError`."""
    interface = Tensors if hasattr(engine, "num_io_tensors") else Bindings
    session = Session(device, interface(trt, engine, context), batch)
    session.runtime = runtime
    if profile:
        session.profile_with(_profiler(trt))
    else:
        session.capture()
    return session


class Tensors:
    """An engine whose inputs and outputs go by name: TensorRT 8.5 and later."""

    def __init__(self, trt: Any, engine: Any, context: Any) -> None:
        self.trt, self.engine, self.context = trt, engine, context
        self.names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]

    def is_input(self, name: str) -> bool:
        return bool(self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT)

    def dtype(self, name: str) -> str:
        return DTYPES[self.engine.get_tensor_dtype(name).name]

    def shape(self, name: str) -> Tuple[int, ...]:
        return tuple(self.context.get_tensor_shape(name))

    def set_shape(self, name: str, shape: Tuple[int, ...]) -> None:
        self.context.set_input_shape(name, shape)

    def bind(self, name: str, address: int) -> None:
        self.context.set_tensor_address(name, address)

    def enqueue(self, stream: int) -> bool:
        return bool(self.context.execute_async_v3(stream))


class Bindings:
    """An engine whose inputs and outputs go by index: TensorRT before 8.5."""

    def __init__(self, trt: Any, engine: Any, context: Any) -> None:
        self.trt, self.engine, self.context = trt, engine, context
        self.names = [engine.get_binding_name(number) for number in range(engine.num_bindings)]
        self.addresses = [0] * len(self.names)

    def is_input(self, name: str) -> bool:
        return bool(self.engine.binding_is_input(self.names.index(name)))

    def dtype(self, name: str) -> str:
        return DTYPES[self.engine.get_binding_dtype(self.names.index(name)).name]

    def shape(self, name: str) -> Tuple[int, ...]:
        return tuple(self.context.get_binding_shape(self.names.index(name)))

    def set_shape(self, name: str, shape: Tuple[int, ...]) -> None:
        self.context.set_binding_shape(self.names.index(name), shape)

    def bind(self, name: str, address: int) -> None:
        self.addresses[self.names.index(name)] = address

    def enqueue(self, stream: int) -> bool:
        return bool(self.context.execute_async_v2(self.addresses, stream))


class Session:
    """An engine with its memory on the device and page-locked on the host, one stream, two events."""

    def __init__(self, device: Any, interface: Any, batch: int) -> None:
        import numpy

        self.cuda, self.interface = device, interface
        self.runtime: Any = None  # must outlive the engine
        self.graph = 0
        self.profiler: Any = None
        self.profiled: List[NodeRun] = []
        self.stream, self.events = device.stream(), (device.event(), device.event())
        self.buffers: Dict[str, Tuple[int, int, Any]] = {}
        given = [name for name in interface.names if interface.is_input(name)]
        for name in given:
            shape = interface.shape(name)
            if any(size < 0 for size in shape):
                interface.set_shape(name, tuple(batch if size < 0 else size for size in shape))
        for name in interface.names:
            if any(size < 0 for size in interface.shape(name)):
                raise CannotRunError("the shape of its %s depends on the data, which this runner does not handle" % name)
            array = numpy.zeros(interface.shape(name), interface.dtype(name))
            on_device, on_host = device.malloc(max(array.nbytes, 1)), device.malloc_host(max(array.nbytes, 1))
            view: Any = (ctypes.c_char * max(array.nbytes, 1)).from_address(on_host)
            host = numpy.frombuffer(view, array.dtype, array.size).reshape(array.shape)
            self.buffers[name] = (on_device, on_host, host)
            interface.bind(name, on_device)
        self.inputs = [(name, interface.dtype(name), list(interface.shape(name))) for name in given]
        self.outputs = [name for name in interface.names if name not in given]

    def run(self, feeds: Dict[str, Any]) -> List[Any]:
        """Closed loop: inputs to the device, inference, outputs back, and waiting for all of it."""
        for name, _, _ in self.inputs:
            on_device, on_host, host = self.buffers[name]
            host[...] = feeds[name]
            self.cuda.copy(on_device, on_host, host.nbytes, cuda_runtime.HOST_TO_DEVICE, self.stream)
        self._enqueue()
        for name in self.outputs:
            on_device, on_host, host = self.buffers[name]
            self.cuda.copy(on_host, on_device, host.nbytes, cuda_runtime.DEVICE_TO_HOST, self.stream)
        self.cuda.synchronize(self.stream)
        if self.profiler is not None:
            self.profiled.append(self.profiler.take())
        return [self.buffers[name][2].copy() for name in self.outputs]

    def gpu_ns(self) -> float:
        """One inference on data that are on the device already, between two events of the stream."""
        start, end = self.events
        self.cuda.call("cudaEventRecord", start, self.stream)
        self._enqueue()
        self.cuda.call("cudaEventRecord", end, self.stream)
        return 1e6 * float(self.cuda.elapsed_ms(start, end))

    def calls_per_s(self) -> float:
        """Inferences in a second when they are enqueued without waiting for one another; without transfers."""
        self._enqueue()
        self.cuda.synchronize(self.stream)
        calls = max(8, min(2000, int(BACK_TO_BACK_S * 1e9 / max(self.gpu_ns(), 1.0))))
        start = clock.now_ns()
        for _ in range(calls):
            self._enqueue()
        self.cuda.synchronize(self.stream)
        return float(1e9 * calls / (clock.now_ns() - start))

    def _enqueue(self) -> None:
        if self.graph:
            self.cuda.call("cudaGraphLaunch", self.graph, self.stream)
        else:
            self._enqueue_kernels(self.stream)

    def _enqueue_kernels(self, stream: int) -> None:
        if not self.interface.enqueue(stream):
            raise CannotRunError("TensorRT could not enqueue an inference")

    def capture(self) -> None:
        """From here on launch one graph instead of every kernel; where the engine does not allow it, nothing changes."""
        self._enqueue()  # TensorRT wants one call with these shapes before
        self.cuda.synchronize(self.stream)
        try:
            self.graph = self.cuda.capture(self.stream, self._enqueue_kernels)
        except CannotRunError:
            self.graph = 0

    # ------------------------------------------------------------------------------------------ layer by layer

    def profile_with(self, profiler: Any) -> None:
        self.profiler = profiler
        self.interface.context.profiler = profiler

    def stop_profile(self) -> List[NodeRun]:
        """Every inference so far, layer by layer; a session opened for profiling keeps paying for it."""
        return self.profiled

    def close(self) -> None:
        """Give the device its memory back."""
        device = self.cuda
        if self.graph:
            device.call("cudaGraphExecDestroy", self.graph)
        for on_device, on_host, _ in self.buffers.values():
            device.call("cudaFree", on_device)
            device.call("cudaFreeHost", on_host)
        for event in self.events:
            device.call("cudaEventDestroy", event)
        device.call("cudaStreamDestroy", self.stream)
        self.buffers, self.graph = {}, 0
        self.interface = None  # context and engine, before
        self.runtime = None


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Takes down the layers of one inference."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.nodes: NodeRun = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.nodes.append((layer_name, "", 1e3 * ms))

        def take(self) -> NodeRun:
            nodes, self.nodes = self.nodes, []
            return nodes

    return Profiler()
