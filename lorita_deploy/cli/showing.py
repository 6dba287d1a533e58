"""Which tables show a record. A plan's says why, when the prices it was made with lie beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from ..errors import BadRecord, UnknownName
from ..records import (
    ArtifactList,
    ArtifactSummary,
    BuildReport,
    CandidateTable,
    CheckpointSummary,
    CollapsedRecord,
    CompressedRecord,
    Document,
    EngineSummary,
    FidelityReport,
    LoadCheck,
    ParetoFront,
    Plan,
    PriceTable,
    Receipt,
    TrainRecord,
)
from ..report import facts, front, networks, proofs
from ..report.table import Table

Kind = TypeVar("Kind", bound=Document)


def tables_of(record: Document, path: Path) -> list[Table]:
    """The tables of ``record``, which was found at ``path``."""
    beside = path if path.is_dir() else path.parent
    match record:
        case BuildReport():
            race = [proofs.latency(record.receipt), proofs.ratios(record.receipt)] if record.receipt else []
            layers = networks.layers(record.plan, record.collapsed)
            proof = [proofs.fidelity(record.fidelity), *([proofs.ledger(record)] if record.ledger else [])]
            return [facts.summary(record), layers, *race, *proof, facts.stages(record.stages)]
        case Plan():
            collapsed = _beside(beside / "collapsed.json", CollapsedRecord)
            prices = _beside(beside / "prices.json", PriceTable)
            candidates = _beside(beside / "candidates.json", CandidateTable)
            offered = candidates.candidates if candidates else ()
            shown = [networks.layers(record, collapsed, candidates=offered, prices=prices)]
            return shown + ([networks.probes(record)] if record.probes else [])
        case ParetoFront():
            return [front.table(record)]
        case Receipt():
            return [proofs.latency(record), *proofs.on_the_board(record), proofs.ratios(record)]
        case CollapsedRecord():
            return [networks.network(record), *([networks.left_alone(record.left_alone)] if record.left_alone else [])]
        case TrainRecord():
            return [networks.training(record)]
        case CompressedRecord():
            return [facts.compressed(record)]
        case FidelityReport():
            return [proofs.fidelity(record.checks)]
        case ArtifactList():
            return [facts.artifacts(record)]
        case ArtifactSummary():
            return [facts.artifact(record)]
        case EngineSummary():
            return [facts.engine(record)]
        case LoadCheck():
            return [facts.loading(record)]
        case CheckpointSummary():
            return [facts.weights(record)]
    return [facts.fields(record, str(path))]


def offers_of(record: Document, path: Path, layer: str) -> Table:
    """All that was on offer for a layer of the plan at ``path``. Raises `UnknownName`, `BadRecord`."""
    if not isinstance(record, Plan):
        raise BadRecord("--layer asks about a plan", where=path, fix="give a plan.json")
    prices, candidates = (
        _beside(path.parent / "prices.json", PriceTable),
        _beside(path.parent / "candidates.json", CandidateTable),
    )
    if prices is None or candidates is None:
        raise BadRecord(
            "prices.json and candidates.json do not lie beside this plan", where=path, fix="look in its build folder"
        )
    names = [choice.layer for choice in record.choices]
    if layer not in names:
        raise UnknownName("layer", layer, names, fix="inspect the plan without --layer to see them all")
    return networks.offers(record, layer, candidates.candidates, prices)


def _beside(path: Path, kind: type[Kind]) -> Kind | None:
    return kind.load(path) if path.exists() else None
