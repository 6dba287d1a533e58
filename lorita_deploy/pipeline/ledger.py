"""The error ledger: what every step that ran did to the network's outputs or to its accuracy, against what it may do.

collapse     the plain network against the factored one (nothing to compare where the weights came collapsed)
truncation   points of accuracy lost by the cuts; recover: by the cuts and the distillation after them
export       the file against torch; simplify: the file before and after onnxsim; precision: as export, in fp16 or int8
engine       outputs of the timed artifact against the golden ones, in the process that took the times
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..records import (
    Accuracy,
    Artifact,
    CollapsedRecord,
    CompressedRecord,
    Fidelity,
    FidelityReport,
    LedgerStep,
    Plan,
    Receipt,
    Role,
)


@dataclass(frozen=True)
class Account:
    """The records that the errors stand in. ``factored``: the weights were trained as products, here."""

    factored: bool
    collapsed: CollapsedRecord
    plan: Plan
    compressed: CompressedRecord
    artifacts: Sequence[Artifact]
    fidelity: FidelityReport
    receipt: Receipt
    tolerance: float
    """On relative differences."""

    @property
    def role(self) -> Role:
        """Whose errors: those of the network in its new forms, or of the dense one where nothing changed."""
        return "compressed" if self.plan.changed() else "dense"

    def steps(self) -> tuple[LedgerStep, ...]:
        """Those that ran, in order."""
        return (*self._network(), *self._artifact())

    def _network(self) -> Iterator[LedgerStep]:
        dense = self.collapsed.accuracy[0]
        if self.factored:
            against, error = "the plain network against the factored one", self.collapsed.collapse_error
            yield _relative("collapse", against, error, self.tolerance, dense)
        if self.role == "dense":
            return
        budget, final, truncated = self.plan.budget.max_drop, self.compressed.accuracy[0], self.compressed.truncated
        # What is demanded holds for the network that ships: cuts that recovery makes good again are within their rights.
        cut = truncated or final
        yield _drop("truncation", "the cut network against the dense one", dense, cut, None if truncated else budget)
        if truncated:
            yield _drop("recover", "the cut and distilled network against the dense one", dense, final, budget)

    def _artifact(self) -> Iterator[LedgerStep]:
        artifact = next(each for each in self.artifacts if each.role == self.role)
        checks = [check for check in self.fidelity.checks if check.role == self.role]
        worst: Fidelity | None = max(checks, key=lambda check: check.max_rel, default=None)
        tolerance = worst.tolerance if worst else self.tolerance
        right = self.fidelity.accuracy.get(self.role)
        reduced = artifact.precision != "fp32"
        if worst and not reduced:
            yield _relative("export", f"{artifact.path} against torch", worst.max_rel, tolerance, right)
        if artifact.simplify_error is not None:
            against = "the graph before and after onnxsim"
            yield _relative("simplify", against, artifact.simplify_error, self.tolerance, None if reduced else right)
        if worst and reduced:
            against = f"{artifact.path}, in {artifact.precision}, against torch"
            yield _relative("precision", against, worst.max_rel, tolerance, right)
        timed = next((each for each in self.receipt.series if each.sha256 == artifact.sha256), None)
        if timed and timed.max_rel is not None:
            where = f"{self.receipt.host.kind} by {self.receipt.settings.runtime}"
            yield _relative("engine", f"timed on {where} against the golden outputs", timed.max_rel, tolerance, None)


def _relative(
    step: Literal["collapse", "export", "simplify", "precision", "engine"],
    against: str,
    error: float,
    budget: float,
    accuracy: Accuracy | None,
) -> LedgerStep:
    return LedgerStep(step=step, against=against, unit="relative", error=error, budget=budget, accuracy=accuracy)


def _drop(
    step: Literal["truncation", "recover"], against: str, dense: Accuracy, found: Accuracy, budget: float | None
) -> LedgerStep:
    lost = 100 * (dense.value - found.value)
    return LedgerStep(step=step, against=against, unit="points", error=lost, budget=budget, accuracy=found)
