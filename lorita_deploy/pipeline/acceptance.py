"""Is an artifact of lower precision right often enough? Asked of the artifact itself, by whatever judges plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..measure.fidelity import TOLERANCES, compare_outputs, run_network, run_session
from ..records import Accuracy, Precision, PrecisionRecord, Role
from .options import DEFAULT_MAX_DROP

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..ports import Session
    from .context import Build


def chosen_precision(path: Path, asked: Precision | Literal["auto"]) -> Precision:
    """What the precision stage wrote down in ``path``; before it has run, what was asked for."""
    if asked != "fp32" and path.exists():
        return PrecisionRecord.load(path).chosen
    return "fp32" if asked == "auto" else asked


def allowed_drop(build: Build) -> float:
    """Points of accuracy that precision and plan together may lose."""
    return DEFAULT_MAX_DROP if build.budget.max_drop is None else build.budget.max_drop


def acceptance(build: Build, module: nn.Module, role: Role, precision: Precision, rung: int = 0) -> Callable[[Session], bool]:
    """Whether an artifact of ``module`` is as right as the budget asks, and near it on the golden inputs.

    Where the budget is one of accuracy it counts from the dense fp32 network, whatever ``module`` has lost of it already;
    otherwise, and for a further rung of the ladder, from ``module`` itself.
    """
    names, batch = build.task.input_names, build.options.batch
    golden = [tensor.cpu().numpy() for tensor in build.task.golden or next(iter(build.task.calibration))]
    expected = run_network(module, golden)
    whole = role == "dense" or (build.budget.max_drop is not None and not rung)
    start = build.validation() if whole else build.task.evaluate(module)
    floor = start.value - allowed_drop(build) / 100

    def accepts(session: Session) -> bool:
        found = run_session(session, dict(zip(names, golden, strict=True)), batch)
        near = compare_outputs(expected, found, role=role, inputs="real", tolerance=TOLERANCES[precision])
        return near.passed and judge(build, session).value >= floor - 1e-12

    return accepts


def judge(build: Build, session: Session) -> Accuracy:
    """Of an opened artifact, on the images that plans are judged by."""
    return build.task.evaluate(as_module(session, build.task.input_names, build.options.batch))


def as_module(session: Session, input_names: tuple[str, ...], batch: int) -> nn.Module:
    """An opened artifact as a module on the CPU, so that whatever judges networks judges it too."""
    import torch
    from torch import nn

    class Opened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # evaluators ask parameters for the device

        def forward(self, *inputs: Tensor) -> Any:
            arrays = {name: tensor.detach().cpu().numpy() for name, tensor in zip(input_names, inputs, strict=True)}
            outputs = tuple(torch.from_numpy(each) for each in run_session(session, arrays, batch))
            return outputs[0] if len(outputs) == 1 else outputs

    return Opened().eval()
