"""The picture of the error ledger: how much of its budget each step used up."""

from __future__ import annotations

from ..records import BuildReport, LedgerStep
from . import svg

ROW, TOP, BOTTOM = 26.0, 26.0, 46.0
LEAST = 1e-6
"""Shares of a budget below this are drawn at the left edge."""


def margins(report: BuildReport, width: float) -> str:
    """Error over budget on a logarithmic scale, a row for each step that has both; beyond 1 is over."""
    judged = [(step, _share(step)) for step in report.ledger if step.error is not None and step.budget]
    names, height = 84.0, TOP + ROW * len(judged) + BOTTOM
    x = svg.Scale(LEAST, max(10.0, *(3 * share for _, share in judged)) if judged else 10.0, names, width - 16, log=True)
    parts = [svg.x_axis(x, TOP, height - BOTTOM, "error as a share of its budget", most=4 if width < 500 else 8)]
    parts.append(svg.line(x(1.0), TOP - 8, x(1.0), height - BOTTOM, "budget"))
    parts.append(svg.label(x(1.0), TOP - 14, "its budget", "middle", "budget-text"))
    for place, (step, share) in enumerate(judged):
        y = TOP + ROW * (place + 0.5)
        said = f"{step.step}: {share:.1e} of its budget"
        parts.append(svg.label(names - 10, y + 4, step.step, "end", "row"))
        parts.append(svg.line(names, y, x(max(share, LEAST)), y, "stem over" if step.over else "stem"))
        parts.append(svg.mark("over" if step.over else "kept", x(max(share, LEAST)), y, said))
    described = "; ".join(f"{step.step} {share:.1e}" for step, share in judged)
    return svg.chart(width, height, "Error of each step over its budget", described, *parts)


def _share(step: LedgerStep) -> float:
    assert step.error is not None
    assert step.budget
    return max(step.error, 0.0) / step.budget
