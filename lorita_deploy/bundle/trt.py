"""TensorRT from 8.2 to 11: building engines and opening them. What a version offers is asked of it, not read off its number.

Precision stands in the ONNX file. Where networks can be strongly typed (TensorRT 10; always in 11) that is all; before, the
builder is allowed what the file asks for. Valid Python 3.6.
"""

import importlib
import os
import re

from typing import Any, Dict, List, Optional

import cuda_runtime
import engines
import machine
import trt_session

from job import write_bytes
from runtimes import CannotRunError

OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|bad_alloc|insufficient memory|cuda (?:runtime )?error 2\b", re.IGNORECASE
)

COMPUTING = (
    "ACTIVATION", "CONVOLUTION", "ELEMENTWISE", "FULLY_CONNECTED", "MATRIX_MULTIPLY", "NORMALIZATION", "POOLING", "REDUCE",
    "SCALE", "SOFTMAX", "UNARY",
)  # fmt: skip
"""Kinds of layers in which a number may overflow."""


class TensorRt:
    """TensorRT as the board has it; ``package`` is the name it is imported by."""

    suffix = ".engine"
    builds = True

    def __init__(self, settings: Dict[str, Any], package: str = "tensorrt") -> None:
        try:
            self.trt: Any = importlib.import_module(package)
        except Exception as error:  # a library it needs may be missing in ways of its own
            raise CannotRunError("%s cannot be imported: %s" % (package, error))
        self.settings = settings
        self.logger = _logger(self.trt)
        self.strongly_typed = hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        if hasattr(self.trt, "init_libnvinfer_plugins"):
            self.trt.init_libnvinfer_plugins(self.logger, "")  # older parsers need them for some ONNX operators
        self._cuda: Optional[cuda_runtime.Cuda] = None

    @property
    def cuda(self) -> "cuda_runtime.Cuda":
        """The CUDA runtime, opened when first needed. Raises `CannotRunError` where there is no device."""
        if self._cuda is None:
            try:
                found = cuda_runtime.Cuda()
                found.devices()
            except (OSError, cuda_runtime.CudaError) as error:
                raise CannotRunError("CUDA cannot be used: %s" % error)
            self._cuda = found
        return self._cuda

    def about(self) -> Dict[str, str]:
        """What engines depend on: the software, the GPU, and the board that it is on."""
        return dict(self.cuda.about(), tensorrt=self.trt.__version__, board=machine.board())

    def versions(self) -> Dict[str, str]:
        import numpy

        return dict(self.cuda.about(), tensorrt=self.trt.__version__, numpy=numpy.__version__)

    def workspaces(self) -> List[int]:
        sizes: List[int] = engines.ladder(self.cuda.memory_bytes()[1])
        return sizes

    # ------------------------------------------------------------------------------------------ building

    def build(self, path: str, precision: str, workspace: int, exact: bool, cache: str = "", configure: Any = None) -> bytes:
        """The engine of an ONNX file.

        ``exact`` keeps float32 from being rounded to TF32; ``cache`` is the file of tactic timings to use and add to;
        ``configure(config)`` may set more. Raises `engines.OutOfMemoryError`, `CannotRunError`.
        """
        trt = self.trt
        del self.logger.errors[:]
        try:
            builder = trt.Builder(self.logger)
            flags = trt.NetworkDefinitionCreationFlag
            flag = flags.STRONGLY_TYPED if self.strongly_typed else flags.EXPLICIT_BATCH
            network = builder.create_network(1 << int(flag))
            parser = trt.OnnxParser(network, self.logger)
            if not parser.parse_from_file(path):
                wrong = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
                raise CannotRunError("TensorRT %s cannot parse it: %s" % (trt.__version__, " ".join(wrong.split())))
            config = builder.create_builder_config()
            self._configure(builder, network, config, precision, workspace, exact)
            if not self.strongly_typed and precision == "fp16":
                _hold_fp32(trt, network, config)
            if configure:
                configure(config)
            timings = self._timing_cache(config, cache)
            plan = builder.build_serialized_network(network, config)
        except MemoryError:
            raise engines.OutOfMemoryError("out of memory")
        if plan is None:
            words = "; ".join(self.logger.errors[-3:]) or "no reason given"
            if OUT_OF_MEMORY.search(" ".join(self.logger.errors)):
                raise engines.OutOfMemoryError(words)
            raise CannotRunError("TensorRT %s cannot build it: %s" % (trt.__version__, words))
        if timings:
            write_bytes(cache, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def _configure(self, builder: Any, network: Any, config: Any, precision: str, workspace: int, exact: bool) -> None:
        trt = self.trt
        if hasattr(config, "set_memory_pool_limit"):  # 8.4
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        else:
            config.max_workspace_size = workspace
        if not self.strongly_typed and precision in ("fp16", "int8"):
            config.set_flag(trt.BuilderFlag.FP16)
        if not self.strongly_typed and precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
        if exact:
            config.clear_flag(trt.BuilderFlag.TF32)
        profile, open_shapes = builder.create_optimization_profile(), False
        for number in range(network.num_inputs):
            given = network.get_input(number)
            if any(size < 0 for size in tuple(given.shape)):
                fixed = tuple(self.settings["batch"] if size < 0 else size for size in tuple(given.shape))
                profile.set_shape(given.name, fixed, fixed, fixed)
                open_shapes = True
        if open_shapes:
            config.add_optimization_profile(profile)

    def _timing_cache(self, config: Any, path: str) -> bool:
        """Whether a cache is in use; one that TensorRT refuses (damaged, of another device or version) is begun anew."""
        if not path or not hasattr(config, "create_timing_cache"):
            return False
        known = b""
        if os.path.exists(path):
            with open(path, "rb") as file:
                known = file.read()
        for content in (known, b""):
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, False):
                return True
        return False

    # ------------------------------------------------------------------------------------------ running

    def open(self, path: str, profile: bool = False) -> "trt_session.Session":
        """An engine, ready to run. Raises `CannotRunError`."""
        trt, device = self.trt, self.cuda
        refused = engines.refusal(path, self.about())
        if refused:
            raise CannotRunError(refused)
        del self.logger.errors[:]
        runtime = trt.Runtime(self.logger)
        with open(path, "rb") as file:
            engine = runtime.deserialize_cuda_engine(file.read())
        context = engine.create_execution_context() if engine is not None else None
        if context is None:
            words = "; ".join(self.logger.errors[-3:]) or "no reason given"
            raise CannotRunError("TensorRT %s does not load it: %s" % (trt.__version__, words))
        return trt_session.open_session(trt, runtime, engine, context, device, self.settings["batch"], profile)


def _hold_fp32(trt: Any, network: Any, config: Any) -> None:
    """Before TensorRT 10 a builder that may use fp16 may use it anywhere: hold the layers that the file keeps in fp32 to it.

    Where all are, there is nothing to hold; layers in fp16 are left to the builder, for which both are right.
    """
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    kinds = [getattr(trt.LayerType, name) for name in COMPUTING if hasattr(trt.LayerType, name)]
    computing = [layer for layer in layers if layer.type in kinds]
    kept = [layer for layer in computing if layer.get_output(0).dtype == trt.DataType.FLOAT]
    if not kept or len(kept) == len(computing):
        return
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for layer in kept:
        layer.precision = trt.DataType.FLOAT
        layer.set_output_type(0, trt.DataType.FLOAT)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps the errors, which say why a build came to nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: List[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split()))

    return Logger()
