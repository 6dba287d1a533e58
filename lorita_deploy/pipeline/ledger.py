"""The error ledger: what every step that ran did to the network's outputs or to its accuracy, against what it may do.

collapse     the plain network against the factored one (nothing to compare where the weights came collapsed)
truncation   points of accuracy lost by the cuts; recover: by the cuts and the distillation after them
export       the file against torch; simplify: the file before and after onnxsim; precision: as export, in fp16 or int8
engine       outputs of the timed artifact against the golden ones, in the process that took the times
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from ..records import Accuracy, Fidelity, LedgerStep, Role

if TYPE_CHECKING:
    from .context import Build


def ledger(build: Build, tolerance: float) -> tuple[LedgerStep, ...]:
    """The steps that ran for the network in its new forms, or for the dense one where nothing changed. ``tolerance`` is that
    of a relative difference."""
    role: Role = "compressed" if build.plan.changed() else "dense"
    return (*_network(build, role, tolerance), *_artifact(build, role, tolerance))


def _network(build: Build, role: Role, tolerance: float) -> Iterator[LedgerStep]:
    dense = build.validation()
    if build.trains:
        yield LedgerStep(
            step="collapse",
            against="the plain network against the factored one",
            unit="relative",
            error=build.collapsed.collapse_error,
            budget=tolerance,
            accuracy=dense,
        )
    if role == "dense":
        return
    compressed, budget = build.compressed.record, build.plan.budget.max_drop
    truncated = compressed.truncated or compressed.accuracy[0]
    recovered = compressed.accuracy[0] if compressed.truncated else None
    # What is demanded holds for the network that ships: cuts that recovery makes good again are within their rights.
    yield _drop("truncation", "the cut network against the dense one", dense, truncated, None if recovered else budget)
    if recovered:
        yield _drop("recover", "the cut and distilled network against the dense one", dense, recovered, budget)


def _drop(
    step: Literal["truncation", "recover"], against: str, dense: Accuracy, found: Accuracy, budget: float | None
) -> LedgerStep:
    lost = 100 * (dense.value - found.value)
    return LedgerStep(step=step, against=against, unit="points", error=lost, budget=budget, accuracy=found)


def _file(step: Literal["export", "precision"], against: str, worst: Fidelity, right: Accuracy | None) -> LedgerStep:
    return LedgerStep(step=step, against=against, unit="relative", error=worst.max_rel, budget=worst.tolerance, accuracy=right)


def _artifact(build: Build, role: Role, tolerance: float) -> Iterator[LedgerStep]:
    artifact = next(each for each in build.artifacts if each.role == role)
    checks = [check for check in build.fidelity.checks if check.role == role]
    worst: Fidelity | None = max(checks, key=lambda check: check.max_rel, default=None)
    right = build.fidelity.accuracy.get(role)
    if worst is not None and artifact.precision == "fp32":
        yield _file("export", f"{artifact.path} against torch", worst, right)
    if artifact.simplify_error is not None:
        yield LedgerStep(
            step="simplify",
            against="the graph before and after onnxsim",
            unit="relative",
            error=artifact.simplify_error,
            budget=tolerance,
            accuracy=right,
        )
    if worst is not None and artifact.precision != "fp32":
        yield _file("precision", f"{artifact.path}, in {artifact.precision}, against torch", worst, right)
    timed = next((each for each in build.receipt.series if each.sha256 == artifact.sha256), None)
    if timed is not None and timed.max_rel is not None:
        yield LedgerStep(
            step="engine",
            against=f"timed on {build.receipt.host.kind} by {build.receipt.settings.runtime} against the golden outputs",
            unit="relative",
            error=timed.max_rel,
            budget=worst.tolerance if worst else tolerance,
            accuracy=None,
        )
