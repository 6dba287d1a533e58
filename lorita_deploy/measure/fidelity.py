"""Does the artifact compute what the torch network computes? Same inputs into both, real ones and random ones like them.

Every figure is finite, so that the records can be written as JSON: a NaN or an infinity on either side, or outputs of
another shape, count as `NOT_A_NUMBER`, which no tolerance lets pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadNetwork, VerificationFailed
from ..networks import evaluating
from ..records import Fidelity, Precision, Role

if TYPE_CHECKING:
    from typing import Literal

    from torch import Tensor, nn

    from ..ports import Session

Array = np.ndarray[Any, Any]

TOLERANCE = 1e-3
"""On max_rel. float32 reorderings of deep networks stay a hundred times below; a wrong layer is far above."""
TOLERANCES: dict[Precision, float] = {"fp32": TOLERANCE, "fp16": 1e-2, "int8": 0.1}
"""By precision. fp16: twenty roundings of 2^-11 in a row; int8: a dozen steps of 1/127 of a tensor's range."""
NOT_A_NUMBER = 1e30
"""Stands for a difference that is not a finite number."""


def verify(
    network: nn.Module,
    session: Session,
    inputs: tuple[Tensor, ...],
    *,
    input_names: Sequence[str],
    role: Role,
    random_examples: int = 8,
    seed: int = 0,
    batch: int = 1,
    tolerance: float = TOLERANCE,
) -> tuple[Fidelity, Fidelity]:
    """Compare ``network`` and ``session`` on real ``inputs`` (batch first) and on random ones like them.

    ``batch`` is how many examples the artifact takes at a time. Random inputs are normal with each input's own mean and
    standard deviation; integers (token numbers) are the real ones, shuffled. Nothing is raised for differences: see
    `require_passed`. Raises `BadNetwork` when the network itself gives no arrays, `BadArtifact` when the artifact does
    not run.
    """
    checks = []
    for kind, arrays in (
        ("real", [tensor.detach().cpu().numpy() for tensor in inputs]),
        ("random", random_like(inputs, random_examples, seed)),
    ):
        reference = run_network(network, arrays)
        got = run_session(session, dict(zip(input_names, arrays, strict=True)), batch)
        checks.append(compare_outputs(reference, got, role=role, inputs=kind, tolerance=tolerance))  # type: ignore[arg-type]
    return checks[0], checks[1]


def compare_outputs(
    reference: Sequence[Array],
    got: Sequence[Array],
    *,
    role: Role,
    inputs: Literal["real", "random"],
    tolerance: float = TOLERANCE,
) -> Fidelity:
    """Figures over all outputs, each (examples, ...). max_rel is the worst over the outputs, each against its own largest
    value; agreement is of the argmax over the first output's second axis."""
    worst_abs = worst_rel = 0.0
    cosine = 1.0
    if len(reference) != len(got):
        worst_abs = worst_rel = NOT_A_NUMBER
    for expected, found in zip(reference, got, strict=False):
        absolute, relative = _difference(expected, found)
        worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
        cosine = min(cosine, _smallest_cosine(expected, found))
    return Fidelity(
        role=role,
        inputs=inputs,
        examples=len(reference[0]) if reference else 0,
        max_abs=worst_abs,
        max_rel=worst_rel,
        cosine=cosine,
        top1_agreement=_agreement(reference[0], got[0]) if reference and got else 0.0,
        tolerance=tolerance,
    )


def require_passed(checks: Iterable[Fidelity], where: object) -> None:
    """Raise `VerificationFailed` for the largest difference past its tolerance, if there is one."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return
    worst = max(failed, key=lambda check: check.max_rel)
    if worst.max_rel >= NOT_A_NUMBER:
        what = "gives NaN, infinite or misshapen outputs"
        fix = "look for overflow: run the network itself on these inputs, or choose --precision fp32"
    else:
        what = f"differs by {worst.max_rel:.2g} of the largest output (tolerance {worst.tolerance:g})"
        fix = "lorita-deploy inspect shows the graph; a network with data-dependent branches cannot be traced faithfully"
    raise VerificationFailed(
        f"the {worst.role} artifact {what} on {worst.examples} {worst.inputs} inputs; "
        f"top-1 agreement {worst.top1_agreement:.1%}, cosine {worst.cosine:.6f}",
        where=where,
        fix=fix,
    )


def random_like(inputs: Sequence[Tensor], examples: int, seed: int) -> list[Array]:
    """``examples`` random inputs for each of ``inputs``: normal with its mean and standard deviation, cut off at its least and
    greatest value (a network may take logarithms); integers shuffled."""
    random = np.random.default_rng(seed)
    drawn = []
    for tensor in inputs:
        real = tensor.detach().cpu().numpy()
        shape = (examples, *real.shape[1:])
        if real.dtype.kind == "f":
            values = random.normal(real.mean(), real.std() or 1.0, shape)
            drawn.append((values.clip(real.min(), real.max()) if real.std() else values).astype(real.dtype))
        else:
            drawn.append(random.permutation(np.resize(real, shape).reshape(-1)).reshape(shape))
    return drawn


def run_network(network: nn.Module, inputs: Sequence[Array]) -> list[Array]:
    """The network's outputs as arrays, in evaluation mode and on its own device. Raises `BadNetwork`."""
    import torch

    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    with evaluating(network), torch.inference_mode():
        outputs = network(*(torch.from_numpy(array).to(device) for array in inputs))
    return [tensor.float().cpu().numpy() if tensor.is_floating_point() else tensor.cpu().numpy() for tensor in flatten(outputs)]


def flatten(outputs: Any) -> Iterator[Tensor]:
    """The tensors in what a network returns, in order. Raises `BadNetwork` for anything that is not a tensor."""
    import torch

    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        yield from flatten(list(outputs.values()))
    elif isinstance(outputs, tuple | list):
        for each in outputs:
            yield from flatten(each)
    elif outputs is not None:
        raise BadNetwork(f"the network returns a {type(outputs).__name__} where a tensor is expected")


def run_session(session: Session, inputs: dict[str, Array], batch: int) -> list[Array]:
    """All examples through an artifact that takes ``batch`` at a time; the last chunk is filled up with its last example."""
    total = len(next(iter(inputs.values())))
    chunks: list[list[Array]] = []
    for start in range(0, total, batch):
        places = np.minimum(np.arange(start, start + batch), total - 1)
        chunks.append(session({name: np.ascontiguousarray(array[places]) for name, array in inputs.items()}))
    return [np.concatenate(parts)[:total] for parts in zip(*chunks, strict=True)]


# ---------------------------------------------------------------------------------------------- one output


def _difference(expected: Array, found: Array) -> tuple[float, float]:
    """(largest absolute difference, the same over the largest expected value)."""
    if expected.shape != found.shape or not np.isfinite(expected).all() or not np.isfinite(found).all():
        return NOT_A_NUMBER, NOT_A_NUMBER
    if not expected.size:
        return 0.0, 0.0
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    absolute = float(np.abs(expected - found).max())
    largest = float(np.abs(expected).max())
    relative = absolute / largest if largest else absolute  # all zeros expected: nothing to be relative to
    return absolute, min(relative, NOT_A_NUMBER)


def _smallest_cosine(expected: Array, found: Array) -> float:
    """Over examples; 1 for two zero vectors, 0 for one, -1 (the worst there is) for what cannot be compared."""
    if expected.shape != found.shape or not np.isfinite(expected).all() or not np.isfinite(found).all():
        return -1.0
    left, right = (each.reshape(len(each), -1).astype(np.float64) for each in (expected, found))
    smallest = 1.0
    for a, b in zip(left, right, strict=True):
        norm = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        if min(norm) > 0:
            smallest = min(smallest, math.fsum((a / norm[0]) * (b / norm[1])))
        elif max(norm) > 0:
            smallest = min(smallest, 0.0)
    return max(-1.0, min(1.0, smallest))


def _agreement(expected: Array, found: Array) -> float:
    """Share of equal argmaxes over axis 1 (classes); outputs without classes agree where they are equal."""
    if expected.shape != found.shape or not expected.size or not np.isfinite(found).all():
        return 0.0
    if expected.ndim < 2:
        return float(np.isclose(expected, found, rtol=TOLERANCE).mean())
    return float((expected.argmax(1) == found.argmax(1)).mean())
