"""The rank ladder: the same network on further rungs of compression, so that a board can meet a deadline it is given there.

Rung 0 is the plan's own network. The others come from the same candidates and prices, with budgets that divide the way from
the dense network to the fastest plan evenly (on a logarithmic scale); they are numbered from the slowest, which by prediction
is the most accurate, to the fastest. None is trained again. Every rung is exported, verified and judged like the rest; what
a board makes of them is its runner's business (``run.py --deadline``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..compress.plan import Solution, dense, fastest, solve
from ..measure.accuracy import artifact_accuracy
from ..measure.fidelity import require_passed, verify
from ..measure.latency import artifact_name
from ..records import Accuracy, Artifact, Choice, Precision
from .context import EVALUATION_BATCH
from .exporting import export, judged

if TYPE_CHECKING:
    import numpy as np

    from .context import Build


@dataclass(frozen=True)
class Rung:
    """One network of the ladder as it ships."""

    artifact: Artifact
    outputs: dict[str, np.ndarray[Any, Any]]
    """What torch computes for the golden inputs."""
    accuracy: Accuracy

    @property
    def name(self) -> str:
        return artifact_name(self.artifact)


def make_ladder(build: Build, precision: Precision, tolerance: float) -> list[Rung]:
    """As many further rungs as were asked for, or fewer where plans coincide. Raises `VerificationFailed`."""
    plans = rungs(build, build.options.rungs)
    return [_rung(build, number, solution, precision, tolerance) for number, solution in enumerate(plans, 1)]


def rungs(build: Build, count: int) -> list[Solution]:
    """Up to ``count`` plans from the slowest to the fastest, different from one another, from dense and the build's own."""
    objective, widths = build.budget.objective, build.offered.widths
    slowest = dense(build.candidates, build.prices, objective, widths).cost
    quickest = fastest(build.candidates, build.prices, objective, widths)
    found: list[Solution] = []
    seen = [_shape(build.plan.choices), ()]
    for step in range(1, count + 1):
        budget = slowest * (quickest.cost / slowest) ** (step / count)
        solution = quickest
        if step < count:
            solution = solve(build.candidates, build.prices, budget_us=budget, objective=objective, widths=widths)
        if _shape(solution.choices) not in seen:
            seen.append(_shape(solution.choices))
            found.append(solution)
    return found


def _shape(choices: Iterable[Choice]) -> tuple[Any, ...]:
    return tuple((each.layer, each.rank, each.k_in, each.k_out) for each in choices if each.form != "dense")


def _rung(build: Build, number: int, solution: Solution, precision: Precision, tolerance: float) -> Rung:
    from .shipping import golden_inputs, reference_outputs  # which makes the ladder

    build.watch.progress(number - 1, build.options.rungs, f"rung {number}")
    changed = tuple(choice for choice in solution.choices if choice.form != "dense")
    module = build.compressor.network(changed, solution.groups)
    filename = f"compressed-rung{number}{build.exporter.suffix}"
    facts = {"model": build.options.model, "role": "compressed", "rung": str(number)}
    facts["ranks"] = json.dumps({choice.layer: choice.rank for choice in changed}, sort_keys=True)
    folder = build.folder.path
    artifact = export(build, module, "compressed", folder, metadata=facts, precision=precision, filename=filename)
    artifact = judged(build, artifact)
    session = build.exporter.open(build.folder / artifact.path)
    checks = verify(
        module.cpu().eval(),
        session,
        tuple(tensor.cpu() for tensor in golden_inputs(build)),
        input_names=build.task.input_names,
        role="compressed",
        batch=build.options.batch,
        tolerance=tolerance,
    )
    require_passed(checks[:1] if precision == "int8" else checks, build.folder / artifact.path)
    module.to(build.device)
    outputs = dict(zip(build.task.output_names, reference_outputs(build, module), strict=True))
    if build.own_task is None and build.data_name is not None:
        batches = build.dataset.batches("test", EVALUATION_BATCH)
        accuracy = artifact_accuracy(session, build.task.input_names, batches, "test", batch=build.options.batch)
    else:
        accuracy = (build.task.test or build.task.evaluate)(module)
    return Rung(artifact=artifact.model_copy(update={"rung": number}), outputs=outputs, accuracy=accuracy)
