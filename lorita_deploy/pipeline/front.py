"""The accuracy-latency front: plans at budgets from dense to the fastest, each built and judged on validation data."""

from __future__ import annotations

from ..compress.plan import Solution, dense, fastest, solve
from ..records import FrontPoint, ParetoFront, write_atomically
from ..report.front import markdown, picture
from .build import run_stages
from .context import Build, Watch
from .options import BuildOptions
from .planning import accuracy_of
from .recovery import planned_network

POINTS = 10
"""Plans on the way from the fastest to dense, evenly spread over the logarithm of the time."""


def pareto(options: BuildOptions, watch: Watch | None = None) -> ParetoFront:
    """Run the stages up to the prices, then sweep the budget. Leaves ``pareto.json``, ``pareto.md`` and ``pareto.svg``.

    Raises what `build` raises.
    """
    context = Build(options, watch=watch)
    with run_stages(context, until="price"):
        found = _swept(context)
        found.save(context.folder / "pareto.json")
        write_atomically(context.folder / "pareto.md", markdown(found).encode())
        write_atomically(context.folder / "pareto.svg", picture(found).encode())
    return found


def _swept(build: Build) -> ParetoFront:
    offered, prices, objective = build.offered, build.prices, build.budget.objective
    quickest = fastest(offered.candidates, prices, objective, offered.widths)
    slowest = dense(offered.candidates, prices, objective, offered.widths)
    solutions = [quickest]
    for place in range(1, POINTS):
        budget = quickest.cost * (slowest.cost / quickest.cost) ** (place / POINTS)
        found = solve(offered.candidates, prices, budget_us=budget, objective=objective, widths=offered.widths)
        if found.choices not in [each.choices for each in solutions]:
            solutions.append(found)
    points = []
    for number, solution in enumerate(solutions):
        build.watch.progress(number, len(solutions), f"{prices.network_us / solution.predicted_us:.2f}x predicted")
        points.append(_judged(build, solution))
    points = _marked(sorted(points, key=lambda point: point.predicted_us))
    return ParetoFront(
        model=build.options.model,
        network_sha256=build.collapsed.weights_sha256,
        target=build.target.name,
        provenance=prices.provenance,
        objective=objective,
        recover_epochs=build.options.recover_epochs,
        dense_us=prices.network_us,
        dense=build.validation(),
        points=tuple(points),
    )


def _judged(build: Build, solution: Solution) -> FrontPoint:
    return FrontPoint(
        predicted_us=solution.predicted_us,
        predicted_loss=solution.predicted_loss,
        accuracy=accuracy_of(build, planned_network(build, solution.changed(), solution.groups)),
        best=False,
        groups=tuple(group for group in solution.groups if group.kept < group.width),
        choices=solution.changed(),
    )


def _marked(points: list[FrontPoint]) -> list[FrontPoint]:
    """``points``, the fastest first, with those marked that are better than every faster one."""
    marked, best = [], -1.0
    for point in points:
        marked.append(point.model_copy(update={"best": point.accuracy.value > best}))
        best = max(best, point.accuracy.value)
    return marked
