"""The runtimes that the runner can drive, one class each, found by the name in the job's settings.

A runtime offers ``versions()``, ``open(path, profile=False)``; what it opens offers ``inputs`` (name, type, shape), ``outputs``
(names), ``run(feeds)``, ``close()`` and, when opened with ``profile=True``, ``stop_profile()``; on a GPU also ``gpu_ns()`` and
``calls_per_s()``. Where ``builds`` is true it opens engines, which are built from the ONNX file first (see `engines`).
The runtime itself is imported where it is started. A runtime that is not ours is the class ``Runtime`` of a file
``runtime_<name>.py`` in the folder of the job; it raises `CannotRunError`. Valid Python 3.6.
"""

import importlib.util

import json
import os
import re
import shutil
import tempfile

from typing import Any, Callable, Dict, List, Optional, Tuple

NodeRun = List[Tuple[str, str, float]]
"""(name, operator, microseconds) of every node that one inference executed, in order."""


class CannotRunError(Exception):
    """The runtime, or the network in it, cannot be used here; the message says why."""


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    suffix = ".onnx"
    builds = False

    def __init__(self, settings: Dict[str, Any]) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise CannotRunError("onnxruntime cannot be imported: %s" % error)
        self.ort = onnxruntime
        self.settings = settings

    def versions(self) -> Dict[str, str]:
        import numpy

        return {"onnxruntime": self.ort.__version__, "numpy": numpy.__version__}

    def open(self, path: str, profile: bool = False) -> "OnnxSession":
        ort, options = self.ort, self.ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.settings["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = {
            "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
            "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        }[self.settings["graph_level"]]
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.settings["spinning"] else "0")
        folder = tempfile.mkdtemp(prefix="lorita-profile-") if profile else ""
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(folder, "profile")
        try:
            return OnnxSession(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]), folder)
        except Exception as error:  # its own exceptions share no public root
            shutil.rmtree(folder, ignore_errors=True)
            raise CannotRunError("ONNX Runtime %s does not load it: %s" % (ort.__version__, " ".join(str(error).split())))


class OnnxSession:
    """A loaded network."""

    def __init__(self, session: Any, folder: str) -> None:
        self.session, self.folder = session, folder
        self.inputs = [(each.name, _DTYPES.get(each.type, each.type), list(each.shape)) for each in session.get_inputs()]
        self.outputs = [each.name for each in session.get_outputs()]

    def run(self, feeds: Dict[str, Any]) -> List[Any]:
        """The outputs in the order of ``outputs``."""
        return self.session.run(None, feeds)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let go of the network."""
        self.session = None

    def stop_profile(self) -> List[NodeRun]:
        """Every inference so far, node by node; the profiler stays off from here on."""
        try:
            with open(self.session.end_profiling(), encoding="utf-8") as file:
                return profiled_runs(json.load(file))
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def profiled_runs(events: List[Dict[str, Any]]) -> List[NodeRun]:
    """The nodes of each inference from the events of ONNX Runtime's profiler.

    Whole microseconds, rounded down; names repeat (every ``ReorderOutput`` is called that), so nodes are told apart by
    their place. An inference ends with the event ``model_run``.
    """
    runs: List[NodeRun] = []
    nodes: NodeRun = []
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            nodes.append((name[: -len("_kernel_time")], event["args"]["op_name"], float(event["dur"])))
        elif name == "model_run":
            runs.append(nodes)
            nodes = []
    return runs


def _tensorrt(settings: Dict[str, Any]) -> Any:
    import trt

    return trt.TensorRt(settings)


RUNTIMES: Dict[str, Callable[[Dict[str, Any]], Any]] = {"onnxruntime": OnnxRuntime, "tensorrt": _tensorrt}


def file_of(name: str) -> str:
    """Where a runtime that is not ours is looked for."""
    return "runtime_%s.py" % name


def find(name: str, folder: str) -> Optional[Callable[[Dict[str, Any]], Any]]:
    """The runtime of this name: ours, or one that travels with the artifacts in ``folder``; None where there is none.

    Raises `CannotRunError` where its file cannot be imported.
    """
    path = os.path.join(folder, file_of(name))
    if name in RUNTIMES or not re.match(r"[\w-]+\Z", name) or not os.path.isfile(path):
        return RUNTIMES.get(name)
    spec: Any = importlib.util.spec_from_file_location(file_of(name)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.Runtime  # type: ignore[no-any-return]
    except Exception as error:  # a framework may be missing in ways of its own
        raise CannotRunError("%s cannot be imported: %s" % (file_of(name), error))
