"""Predicted losses put right by real ones: what does each change of a plan cost within that very plan?

Predictions take layers one by one; what they miss (errors that add up or cancel, layers that make up for others) is seen by
undoing one change at a time and looking at the outputs. All candidates of that layer, or widths of that group, are scaled by
what was found, and the plan can be solved again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..compress.plan import Solution
from ..compress.recover import output_distance
from ..records import CandidateTable, Choice

if TYPE_CHECKING:
    from torch import nn

    from .context import Build

MOST = 5.0
"""A prediction is scaled by at most this, and at least its inverse: one look at a few hundred images is not all there is."""


def true_loss(build: Build, network: nn.Module) -> float:
    """Mean divergence of the outputs of ``network`` from the dense network's, on the calibration inputs."""
    import torch

    inputs = build.compressor.dense_outputs.inputs
    with torch.no_grad():
        return float(output_distance(network(*inputs), build.compressor.dense(*inputs)))


def with_true_losses(build: Build, solution: Solution, offered: CandidateTable) -> CandidateTable:
    """``offered`` with the predicted losses of what ``solution`` changes scaled to what undoing them one by one gains."""
    changed = [choice for choice in solution.choices if choice.rank]
    narrowed = [group for group in solution.groups if group.kept < group.width]
    whole = true_loss(build, build.compressor.network(changed, narrowed))
    layers, groups = {}, {}
    for place, choice in enumerate(changed):
        build.watch.progress(place, len(changed) + len(narrowed), f"undoing {choice.layer}")
        without = build.compressor.network(_others(changed, choice), narrowed)
        layers[choice.layer] = _scale(whole - true_loss(build, without), choice.predicted_loss)
    for place, group in enumerate(narrowed):
        build.watch.progress(len(changed) + place, len(changed) + len(narrowed), f"undoing {group.group}")
        without = build.compressor.network(changed, [each for each in narrowed if each is not group])
        groups[group.group] = _scale(whole - true_loss(build, without), group.predicted_loss)
    return offered.model_copy(
        update={
            "candidates": tuple(
                each.model_copy(update={"predicted_loss": each.predicted_loss * layers.get(each.layer, 1.0)})
                for each in offered.candidates
            ),
            "widths": tuple(
                each.model_copy(update={"losses": tuple(loss * groups.get(each.group, 1.0) for loss in each.losses)})
                for each in offered.widths
            ),
        }
    )


def _others(choices: Iterable[Choice], one: Choice) -> list[Choice]:
    return [choice for choice in choices if choice is not one]


def _scale(found: float, predicted: float) -> float:
    if predicted <= 0:
        return 1.0
    return min(MOST, max(1 / MOST, found / predicted))
