"""Prices that were measured earlier, on this host or on another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import BadRecord, EnvironmentDiffers, PlanMismatch
from ..records import Candidate, Geometry, Host, Precision, PriceTable, Settings
from ..targets import Target


class TablePricer:
    """Prices from a table that was measured earlier, on this host or on another one."""

    def __init__(
        self,
        path: Path,
        *,
        layers: Mapping[str, Geometry],
        host: Host | None,
        settings: Settings,
        precision: Precision,
        network_sha256: str,
        target: Target,
        trust: bool = False,
    ) -> None:
        """``host`` is the machine that the prices are for; None where it is not at hand, and only its kind is known."""
        self.path, self.layers, self.host, self.settings, self.precision = path, dict(layers), host, settings, precision
        self.network_sha256, self.target, self.trust = network_sha256, target.name, trust

    def price(self, candidates: Sequence[Candidate]) -> PriceTable:
        """The stored prices of ``candidates``; they are ``tabled`` unless they were measured on this very host.

        Raises `BadRecord` (damaged, or a candidate is missing), `PlanMismatch` (a layer of another geometry), and
        `EnvironmentDiffers` where target, precision or batch differ, and where host or threads do, unless ``trust`` was given.
        """
        table = PriceTable.load(self.path)
        if of_others := self._of_others(table):  # a workstation's do not pass for a board's, trust or not
            raise EnvironmentDiffers(
                f"these prices are of something else: {'; '.join(of_others)}",
                where=self.path,
                fix="measure again without --layer-times",
            )
        differences = self._differences(table)
        if differences and not self.trust:
            raise EnvironmentDiffers(
                f"these prices were measured under other conditions: {'; '.join(differences)}",
                where=self.path,
                fix="measure again without --layer-times, or say --trust-times",
            )
        for layer, geometry in self.layers.items():
            if table.geometries.get(layer, geometry) != geometry:
                raise PlanMismatch(f"these prices are of another network: {layer} has another geometry", where=self.path)
        prices = {each.candidate: each for each in table.times}
        missing = [each.key for each in candidates if each.key not in prices]
        if missing:
            raise BadRecord(
                f"{len(missing)} candidates have no price; first: {missing[0]}", where=self.path, fix="measure again"
            )
        elsewhere = bool(differences) or not _same(table.host, self.host)
        provenance = "tabled" if table.provenance == "measured" and elsewhere else table.provenance
        times = tuple(prices[each.key].model_copy(update={"provenance": provenance}) for each in candidates)
        changes = {"network_sha256": self.network_sha256, "target": self.target, "provenance": provenance, "times": times}
        return table.model_copy(update=changes)

    def _of_others(self, table: PriceTable) -> list[str]:
        return _different(
            ("target", table.target, self.target),
            ("precision", table.precision, self.precision),
            ("batch", table.batch, self.settings.batch),
        )

    def _differences(self, table: PriceTable) -> list[str]:
        pairs: list[tuple[str, object, object]] = [("threads", table.threads, self.settings.threads)]
        if self.host and table.host:
            runtime = self.settings.runtime
            pairs += [("machine", table.host.machine, self.host.machine), ("cores", table.host.cores, self.host.cores)]
            pairs += [(runtime, table.host.versions.get(runtime), self.host.versions.get(runtime))]
        elif self.host:
            pairs += [("host", "none (an estimate)", self.host.machine)]
        return _different(*pairs)


def _different(*pairs: tuple[str, object, object]) -> list[str]:
    return [f"{name} {there} there, {here} here" for name, there, here in pairs if there != here]


def _same(there: Host | None, here: Host | None) -> bool:
    """Whether both are one machine with the same software, as far as both tell of it: the runner names fewer packages."""
    if there is None or here is None:
        return False
    known = there.versions.keys() & here.versions.keys()
    first, second = (
        each.model_copy(update={"versions": {name: each.versions[name] for name in known}}) for each in (there, here)
    )
    return first == second
