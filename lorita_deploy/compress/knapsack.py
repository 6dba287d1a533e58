"""The multiple-choice knapsack behind a plan, solved exactly as a mixed-integer program.

One candidate per layer and one width per channel group: least predicted loss, cost within the budget. A candidate reads and
writes certain numbers of channels, so it can only be chosen together with the widths of its groups (linking rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BadRecord
from ..records import Candidate, PriceTable, WidthOffer

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Objective = Literal["latency", "macs", "params"]

MARGIN = 0.03
"""A layer leaves its dense form only for one at least this much cheaper. Prices repeat to two or three per cent: below that
noise would decide, the layer would lose accuracy for nothing, and the whole might be slower."""
FREE_SHARE = 1e-3
"""Among plans whose predicted losses differ by less than this share, the faster one is taken."""


@dataclass(frozen=True)
class Offer:
    """A candidate with its time and what it takes of the budget."""

    candidate: Candidate
    us: float
    cost: float


@dataclass(frozen=True)
class Pick:
    """One offer per layer and one width per group."""

    offers: tuple[Offer, ...]
    kept: tuple[int, ...]
    solver: str
    note: str = ""

    @property
    def cost(self) -> float:
        """Over the layers."""
        return sum(offer.cost for offer in self.offers)


@dataclass(frozen=True)
class Table:
    """What may be chosen: per layer its offers, the dense layer first, and the groups' widths."""

    offers: list[list[Offer]]
    widths: tuple[WidthOffer, ...]
    fixed: float
    """What the budget pays outside the layers."""
    rest_us: float

    @classmethod
    def of(
        cls, candidates: Sequence[Candidate], prices: PriceTable, objective: Objective, widths: Sequence[WidthOffer] = ()
    ) -> Table:
        """Unpriced candidates and those that gain too little are left out. Raises `BadRecord` for an unpriced dense layer."""
        times = {price.candidate: price.us for price in prices.times}
        layers: dict[str, dict[tuple[int, int], list[Offer]]] = {}
        for candidate in sorted(candidates, key=_order):
            us = times.get(candidate.key)
            if candidate.form == "dense" and us is None:
                what = f"the prices lack layer {candidate.layer} ({candidate.key})"
                raise BadRecord(what, where=candidate.layer, fix="measure the prices again")
            sizes = layers.setdefault(candidate.layer, {})
            alike = sizes.get((candidate.k_in, candidate.k_out))
            if us is None or (candidate.rank is not None and alike is None):
                continue
            cost = us if objective == "latency" else float(candidate.macs if objective == "macs" else candidate.params)
            if alike is None:
                sizes[candidate.k_in, candidate.k_out] = [Offer(candidate, us, cost)]
            elif cost <= (1 - MARGIN) * alike[0].cost:
                alike.append(Offer(candidate, us, cost))
        fixed = prices.rest_us if objective == "latency" else 0.0
        offers = [[offer for alike in sizes.values() for offer in _undominated(alike)] for sizes in layers.values()]
        return cls(offers, tuple(widths), fixed, prices.rest_us)

    def dense(self, solver: str) -> Pick:
        return Pick(tuple(layer[0] for layer in self.offers), self._whole(), solver)

    def cheapest(self, time_limit_s: float = 10.0) -> Pick:
        """The least cost, whatever the loss."""
        if not self.widths:
            return Pick(tuple(min(layer, key=_cheapest) for layer in self.offers), (), "each layer's fastest")
        program = _Program(self)
        losses = program.loss / (float(program.loss.max()) or 1.0)
        found = program.solve(program.cost / program.cost.max() + 1e-6 * losses, None, None, time_limit_s)
        if found is not None:
            return found
        note = f"the fastest with all channels, as the solver found none of its own within {time_limit_s:g} s"
        return Pick(self._fastest_whole(), self._whole(), "highs: time limit, the fastest with all channels", note)

    def _fastest_whole(self) -> tuple[Offer, ...]:
        """Each layer's cheapest offer with all its channels: they fit together whatever the groups are."""
        sizes = [(layer[0].candidate.k_in, layer[0].candidate.k_out) for layer in self.offers]
        return tuple(
            min((each for each in layer if (each.candidate.k_in, each.candidate.k_out) == size), key=_cheapest)
            for layer, size in zip(self.offers, sizes, strict=True)
        )

    def _whole(self) -> tuple[int, ...]:
        return tuple(each.kept[0] for each in self.widths)

    def least_loss(self, budget: float, time_limit_s: float) -> Pick:
        """Least loss with the offers' costs within ``budget``, which is known to be possible."""
        import numpy as np

        program = _Program(self)
        share = program.cost / max(budget, 1e-12)

        # The relaxation bounds the loss from below and nearly equals it. In its unit the solver's absolute tolerances are
        # small however small the losses are, and what alone costs more than a plan made by rounding need not be looked at.
        largest = float(program.loss.max()) or 1.0
        relaxed = program.relaxation(program.loss / largest, share)
        if relaxed is None:  # the budget is the least to the last digit
            return self.cheapest(time_limit_s)
        unit = max(float(program.loss @ relaxed), 1e-9 * largest)
        rounded = None if self.widths else program.rounded(relaxed)
        most = np.inf
        if rounded is not None:
            most = sum(offer.candidate.predicted_loss for offer in rounded.offers) + FREE_SHARE * unit
        found = program.solve(program.loss / unit + FREE_SHARE * share, share, program.loss <= most, time_limit_s)
        if found is not None:
            return found
        if rounded is not None:
            note = f"the solver found no plan of its own within {time_limit_s:g} s; this one is the rounded relaxation"
            return Pick(rounded.offers, (), "highs: time limit, relaxation rounded", note)
        note = f"the solver found no plan of its own within {time_limit_s:g} s; this one is the fastest"
        fastest = self.cheapest(time_limit_s)
        return Pick(fastest.offers, fastest.kept, "highs: time limit, the fastest instead", fastest.note or note)


def _order(candidate: Candidate) -> tuple[bool, bool]:
    """Dense first, then what is narrow but whole: what pairs of the same widths are compared with."""
    return candidate.form != "dense", candidate.rank is not None


def _cheapest(offer: Offer) -> tuple[float, float]:
    return offer.cost, offer.candidate.predicted_loss


def _undominated(offers: list[Offer]) -> list[Offer]:
    """Without the offers that another is no worse than in both cost and loss; the first stays."""
    kept: list[Offer] = []
    for offer in sorted(offers[1:], key=_cheapest):
        if not kept or offer.candidate.predicted_loss < kept[-1].candidate.predicted_loss:
            kept.append(offer)
    return [offers[0], *kept]


# ---------------------------------------------------------------------------------------------- the program


class _Program:
    """The table as vectors: a variable of 0 or 1 for every offer, then for every width of every group."""

    def __init__(self, table: Table) -> None:
        import numpy as np

        self.table = table
        self.flat = [(row, offer) for row, layer in enumerate(table.offers) for offer in layer]
        self.sizes = [(row, kept) for row, each in enumerate(table.widths) for kept in each.kept]
        of_widths = [loss for each in table.widths for loss in each.losses]
        self.loss = np.array([offer.candidate.predicted_loss for _, offer in self.flat] + of_widths)
        self.cost = np.array([offer.cost for _, offer in self.flat] + [0.0] * len(of_widths))
        self.rows, self.right = self._equalities()

    def _equalities(self) -> tuple[Any, Array]:
        """One offer per layer, one width per group, and widths that fit: A x = b."""
        import numpy as np
        from scipy.sparse import csr_array

        layers, groups, offers = len(self.table.offers), len(self.table.widths), len(self.flat)
        entries = [(row, column, 1.0) for column, (row, _) in enumerate(self.flat)]
        entries += [(layers + row, offers + column, 1.0) for column, (row, _) in enumerate(self.sizes)]
        count = layers + groups
        for columns, width in self._links():
            entries += [(count, column, 1.0) for column in columns] + [(count, offers + width, -1.0)]
            count += 1
        row, column, value = zip(*entries, strict=True)
        matrix = csr_array((value, (row, column)), shape=(count, offers + len(self.sizes)))
        return matrix, np.array([1.0] * (layers + groups) + [0.0] * (count - layers - groups))

    def _links(self) -> Iterator[tuple[list[int], int]]:
        """(offers of one layer that need a certain width of a group, that width)."""
        place = {layer[0].candidate.layer: row for row, layer in enumerate(self.table.offers)}
        columns: dict[int, list[int]] = {}
        for column, (row, _) in enumerate(self.flat):
            columns.setdefault(row, []).append(column)
        for width, (row, kept) in enumerate(self.sizes):
            group = self.table.widths[row]
            for layer in group.producers:
                yield [c for c in columns[place[layer]] if self.flat[c][1].candidate.k_out == kept], width
            for layer, repeats in group.consumers.items():
                yield [c for c in columns[place[layer]] if self.flat[c][1].candidate.k_in == kept * repeats], width

    def relaxation(self, objective: Array, share: Array) -> Array | None:
        """Fractions of offers and widths; None where the budget leaves none."""
        from scipy.optimize import linprog

        found = linprog(objective, A_ub=share[None, :], b_ub=[1.0], A_eq=self.rows, b_eq=self.right, bounds=(0, 1))
        return None if found.x is None else found.x

    def rounded(self, relaxed: Array) -> Pick:
        """Of each layer's fractions the cheapest: within the budget. (For tables without widths.)"""
        taken = [(row, offer) for (row, offer), x in zip(self.flat, relaxed, strict=True) if x > 1e-9]
        rows = range(len(self.table.offers))
        return Pick(tuple(min((offer for at, offer in taken if at == row), key=_cheapest) for row in rows), (), "rounded")

    def solve(self, objective: Array, share: Array | None, allowed: Array | None, time_limit_s: float) -> Pick | None:
        """The best choice, with ``share`` of the budget at most 1; None where none was found in time."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp

        constraints = [LinearConstraint(self.rows, self.right, self.right)]
        if share is not None:
            constraints.append(LinearConstraint(share[None, :], -np.inf, 1.0))
        result = milp(
            objective,
            integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1 if allowed is None else np.where(allowed, 1, 0)),
            constraints=constraints,
            options={"time_limit": time_limit_s, "mip_rel_gap": 1e-4},
        )
        if result.x is None:
            return None
        best: dict[int, tuple[float, Offer]] = {}
        for x, (row, offer) in zip(result.x, self.flat, strict=False):
            if row not in best or x > best[row][0]:
                best[row] = (x, offer)
        kept: dict[int, tuple[float, int]] = {}
        for x, (row, size) in zip(result.x[len(self.flat) :], self.sizes, strict=True):
            if row not in kept or x > kept[row][0]:
                kept[row] = (x, size)
        offers, sizes = tuple(best[row][1] for row in sorted(best)), tuple(kept[row][1] for row in sorted(kept))
        gap = float(result.mip_gap or 0.0)
        if result.status == 0:
            return Pick(offers, sizes, f"highs: optimal, gap {gap:.2%}")
        note = f"the solver stopped at its time limit; the loss of its best plan is within {gap:.1%} of the least"
        return Pick(offers, sizes, f"highs: time limit of {time_limit_s:g} s, gap {gap:.2%}", note)
