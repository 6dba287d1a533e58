"""The rank ladder: the same network on further rungs of compression, so that a board can meet a deadline it is given there.

Rung 0 is the plan's own network. The others come from the same candidates and prices, with budgets that divide the way from
the dense network to the fastest plan that loses at most `MOST_LOST` points evenly (on a logarithmic scale); they are numbered
from the slowest, which by prediction is the most accurate, to the fastest. None is trained again, but for recovery. Every rung
is exported, verified and judged like the rest; what a board makes of them is its runner's business (``run.py --deadline``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..compress.plan import Objective, Solution, dense, shape_of, solve
from ..measure.accuracy import artifact_accuracy
from ..measure.fidelity import require_passed, verify
from ..measure.latency import artifact_name
from ..records import Accuracy, Artifact, Candidate, Choice, Precision, PriceTable, WidthOffer
from .acceptance import as_module
from .context import EVALUATION_BATCH
from .exporting import export, judged
from .recovery import planned_network
from .search import Search

if TYPE_CHECKING:
    import numpy as np

    from .context import Build


MOST_LOST = 10.0
"""Points of validation accuracy: below that nobody wants a network, however fast."""


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
    count = build.options.rungs
    if not count:
        return []
    tables = Tables(build.candidates, build.prices, build.budget.objective, build.offered.widths)
    plans = further_plans(tables, build.plan.choices, _last(build, tables), count)
    return [_rung(build, number, solution, precision, tolerance) for number, solution in enumerate(plans, 1)]


class Tables(NamedTuple):
    """What plans are made of."""

    candidates: tuple[Candidate, ...]
    prices: PriceTable
    objective: Objective = "latency"
    widths: tuple[WidthOffer, ...] = ()


def _last(build: Build, tables: Tables) -> Solution:
    """The fastest plan that is still worth shipping."""

    def judge(solution: Solution, _: int) -> Accuracy:
        return build.task.evaluate(build.compressor.network(solution.changed(), solution.groups))

    return Search(
        candidates=tables.candidates,
        widths=tables.widths,
        prices=tables.prices,
        judge=judge,
        dense_accuracy=build.validation(),
        max_drop=MOST_LOST,
        objective=tables.objective,
        progress=build.watch.progress,
    ).run()


def further_plans(tables: Tables, own: Sequence[Choice], last: Solution, count: int) -> list[Solution]:
    """Up to ``count`` plans from the slowest to ``last``, different from one another, from dense and from ``own``."""
    slowest = dense(*tables).cost
    candidates, prices, objective, widths = tables
    found: list[Solution] = []
    seen = [shape_of(own), ()]
    for step in range(1, count + 1):
        budget = slowest * (last.cost / slowest) ** (step / count)
        solution = last
        if step < count:
            solution = solve(candidates, prices, budget_us=budget, objective=objective, widths=widths)
        if shape_of(solution.choices) not in seen:
            seen.append(shape_of(solution.choices))
            found.append(solution)
    return found


def _rung(build: Build, number: int, solution: Solution, precision: Precision, tolerance: float) -> Rung:
    from .shipping import golden_inputs, reference_outputs  # which makes the ladder

    build.watch.progress(number - 1, build.options.rungs, f"rung {number}")
    changed = solution.changed()
    module = planned_network(build, changed, solution.groups)
    filename = f"compressed-rung{number}{build.exporter.suffix}"
    facts = {"model": build.options.model, "role": "compressed", "rung": str(number)}
    facts["ranks"] = json.dumps({choice.layer: choice.rank for choice in changed}, sort_keys=True)
    folder = build.folder.path
    written: dict[str, Any] = {"precision": precision, "filename": filename, "rung": number}
    artifact = export(build, module, "compressed", folder, metadata=facts, **written)
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
        opened = module if artifact.precision == "fp32" else as_module(session, build.task.input_names, build.options.batch)
        accuracy = (build.task.test or build.task.evaluate)(opened)
    return Rung(artifact=artifact, outputs=outputs, accuracy=accuracy)
