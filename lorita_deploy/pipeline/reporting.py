"""The report at the end of a build: everything the stages found, gathered from their documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..measure.fidelity import TOLERANCE
from ..records import (
    Artifact,
    BuildReport,
    FidelityReport,
    Plan,
    PrecisionRecord,
    Role,
    ratio_between,
    write_atomically,
)
from ..report import markdown, page, shipped as ships_as, words
from ..targets import this_host
from .ledger import Account

if TYPE_CHECKING:
    from .context import Build


def write_report(build: Build) -> BuildReport:
    """Write report.json, report.md and report.html."""
    report = gather(build)
    report.save(build.folder / "report.json")
    write_atomically(build.folder / "report.md", markdown.render(report).encode())
    write_atomically(build.folder / "report.html", page.render(report).encode())
    return report


def gather(build: Build) -> BuildReport:
    """The `BuildReport` of a build whose bench stage is done."""
    from .choosing import ships

    dense, compressed, plan, receipt = build.collapsed, build.compressed.record, build.plan, build.receipt
    winner = ships(build, receipt)
    shipped = winner.role
    fidelity = _of_what_ships(build, winner)
    is_dense = shipped == "dense"
    stages = tuple(record for name in _stage_names() if (record := build.folder.record(name)) is not None)
    draft = BuildReport(
        model=build.options.model,
        target=build.target.name,
        provenance=plan.provenance,
        shipped=shipped,
        artifact="model.onnx",
        headline="",
        estimated_ratio=None if build.on_target else plan.predicted_us / plan.dense_us,
        accuracy=fidelity.accuracy,
        validation={"dense": build.validation(), "compressed": compressed.accuracy[0]},
        params=(dense.params, dense.params if is_dense else compressed.params),
        macs=(dense.macs, dense.macs if is_dense else compressed.macs),
        artifacts=fidelity.artifacts,
        fidelity=fidelity.checks,
        plan=plan,
        receipt=receipt,
        host=this_host(build.kind if build.here else "cpu"),
        stages=stages,
        left_alone=dense.left_alone,
        notes=tuple(dict.fromkeys(note for note in _notes(build) if note not in plan.notes)),
        collapsed=dense,
        ledger=_account(build, fidelity).steps(),
        precision=PrecisionRecord.load(build.folder / "precision.json"),
        shipped_precision=winner.precision,
    )
    return draft.model_copy(update={"headline": headline(draft), "missed": tuple(_missed(build, draft))})


def _notes(build: Build) -> Iterator[str]:
    """Of every stage before, and of the one that reports."""
    for name in _stage_names()[:-1]:
        record = build.folder.record(name)
        yield from record.notes if record else ()
    yield from build.watch.notes


def _of_what_ships(build: Build, winner: Artifact) -> FidelityReport:
    """The proofs of both networks in the precision that ships: where a lower one lost the race, of those in fp32."""
    found, exact = build.fidelity, build.exported.reference
    if winner not in exact:
        return found
    checks = tuple(check for artifact in exact for check in found.further.get(artifact.path, ()))
    return found.model_copy(update={"artifacts": exact, "checks": checks, "accuracy": found.reference_accuracy})


def _account(build: Build, fidelity: FidelityReport) -> Account:
    return Account(
        factored=build.trains,
        collapsed=build.collapsed,
        plan=build.plan,
        compressed=build.compressed.record,
        artifacts=fidelity.artifacts,
        fidelity=fidelity,
        receipt=build.receipt,
        tolerance=TOLERANCE,
    )


def _missed(build: Build, report: BuildReport) -> Iterator[str]:
    """Demands that the measured times do not meet (or, where the target is not at hand, the plan's). A budget counts as missed
    when the whole interval lies beyond it; ``--require-speedup`` asks for proof."""
    required, budget, race = build.options.require_speedup, report.plan.budget, ships_as.race(report)
    assert report.receipt is not None
    assert race is not None
    dense_ships = report.shipped == "dense"
    found = "the dense network ships" if dense_ships else words.speed(race)
    if required is not None and not build.on_target:
        yield f"a speed-up of {required:g}x was required, but no time on {report.target} is measured here"
    elif required is not None and (dense_ships or 1 / race.ci95[1] < required):
        yield f"a speed-up of {required:g}x was required: {found}"
    if not build.on_target:
        yield from missed_by(report.plan)
        return
    if budget.speedup is not None and (1.0 if dense_ships else 1 / race.ci95[0]) < budget.speedup:
        yield f"a speed-up of {budget.speedup:g}x was asked for: {found}"
    if budget.max_latency_ms is not None:
        times = {each.name: each.median_ci95_ms[0] for each in report.receipt.series}
        fastest_ms = times.get(ships_as.name(report), report.plan.predicted_us / 1e3)
        if fastest_ms > budget.max_latency_ms:
            took = f"{words.number(fastest_ms)} ms"
            yield f"at most {budget.max_latency_ms:g} ms were asked for: {took}, {report.provenance}"


def missed_by(plan: Plan) -> Iterator[str]:
    """Budgets of time that a plan does not keep by its own prices: nobody has measured it yet, or nobody can here."""
    budget, gain = plan.budget, plan.dense_us / plan.predicted_us
    if budget.speedup is not None and gain < budget.speedup * (1 - 1e-9):
        yield f"a speed-up of {budget.speedup:g}x was asked for: {words.times(gain)} predicted ({plan.provenance})"
    if budget.max_latency_ms is not None and plan.predicted_us > 1e3 * budget.max_latency_ms * (1 + 1e-9):
        yield f"at most {budget.max_latency_ms:g} ms were asked for: more than that, {plan.provenance}"


def headline(report: BuildReport) -> str:
    """One line of result, in words that cannot be mistaken for more than was measured."""
    race = ships_as.race(report)
    assert race is not None
    measured = words.speed(race)
    if report.shipped == "dense":
        line = _why_dense(report)
    elif report.estimated_ratio is not None:
        found = f"{report.provenance} {words.estimated(report.estimated_ratio)} on {report.target}"
        line = f"{found}; cpu, measured: {measured}"
    else:
        line = f"{measured}, measured"
    role: Role = report.shipped
    line += _against_fp32(report)
    if role in report.accuracy:
        line += f"; {words.right_change(report.accuracy['dense'], report.accuracy[role])}"
    return line


def _why_dense(report: BuildReport) -> str:
    plan = report.plan
    if not plan.choices:
        return "ships the dense network: no layer can take another form"
    if not plan.changed() and any(not probe.accepted for probe in plan.probes):
        return "ships the dense network: every layer stays dense within the budget"
    return "ships the dense network: no compressed form was faster"


def _against_fp32(report: BuildReport) -> str:
    """What the lower precision that ships is against the dense network in fp32, or that fp32 ships after all."""
    asked = report.precision.asked if report.precision else "fp32"
    if asked == "fp32":
        return ""
    if report.shipped_precision == "fp32":
        return f"; in fp32 ({report.plan.precision} was not faster)" if report.plan.precision != "fp32" else "; in fp32"
    assert report.receipt is not None
    found = ratio_between(report.receipt, report.shipped, "dense-fp32")
    return f"; in {report.shipped_precision}, {words.speed(found)} than dense in fp32"


def _stage_names() -> tuple[str, ...]:
    from .build import STAGES

    return STAGES
