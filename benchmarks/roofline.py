"""Does the roofline estimate rank layers as this processor does?

    python benchmarks/roofline.py        writes benchmarks/roofline.md

Every shape is a layer in a network of its own (a 1x1 convolution before and after it, so that the runtime's layout is that of a
deep network), all in one ONNX file as parallel branches; `MeasuredPricer` times each dense and as pairs of four ranks, through
the runner. The parameters in targets/cpu.toml are fitted on every other shape and judged on the rest. Run it alone.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import minimize
from scipy.stats import spearmanr

from lorita_deploy.devices.local import LocalDevice
from lorita_deploy.forms import FORMS
from lorita_deploy.measure.layer_times import MeasuredPricer
from lorita_deploy.measure.roofline import RooflinePricer
from lorita_deploy.records import Candidate, Geometry, PriceTable, Settings
from lorita_deploy.targets import Roofline, Target, load_target

HERE = Path(__file__).resolve().parent
RESULT = HERE / "roofline.md"
CONVS = (  # inputs, outputs, kernel, stride, height of the input
    *((3, 64, 3, 1, 32), (16, 16, 3, 1, 32), (32, 32, 3, 1, 16), (64, 64, 3, 1, 32), (64, 64, 3, 1, 8), (64, 128, 3, 1, 16)),
    *(
        (128, 128, 3, 1, 16),
        (128, 128, 3, 1, 28),
        (256, 256, 3, 1, 8),
        (256, 256, 3, 1, 14),
        (512, 512, 3, 1, 4),
        (512, 512, 3, 1, 2),
    ),
    *(
        (512, 512, 3, 1, 7),
        (32, 64, 3, 2, 16),
        (64, 128, 3, 2, 56),
        (128, 256, 3, 2, 28),
        (256, 512, 3, 2, 14),
        (64, 64, 7, 2, 28),
    ),
    *((64, 256, 1, 1, 56), (256, 64, 1, 1, 56), (512, 128, 1, 1, 28), (256, 1024, 1, 1, 14), (1024, 256, 1, 1, 14)),
    *((2048, 512, 1, 1, 7), (96, 24, 1, 1, 56), (160, 960, 1, 1, 7), (256, 512, 1, 2, 56)),
)
LINEARS = (  # inputs, outputs, tokens (0: one vector)
    *((784, 512, 0), (512, 512, 0), (512, 10, 0), (2048, 1000, 0), (4096, 4096, 0)),
    *((192, 192, 65), (192, 768, 65), (768, 192, 65), (768, 768, 197), (768, 3072, 197)),
)


def shapes() -> dict[str, Geometry]:
    found = {}
    for inp, out, kernel, stride, size in CONVS:
        pad, after = kernel // 2, (size + stride - 1) // stride
        found[f"conv{kernel}x{kernel}/{stride} {inp}-{out} at {size}"] = Geometry(
            kind="conv2d", out_channels=out, in_channels=inp, kernel=(kernel, kernel), stride=(stride, stride),
            padding=(pad, pad), dilation=(1, 1), in_shape=(size, size), out_shape=(after, after),
        )  # fmt: skip
    for inp, out, tokens in LINEARS:
        on = (tokens,) if tokens else ()
        name = f"linear {inp}-{out}" + (f" on {tokens}" if tokens else "")
        found[name] = Geometry(kind="linear", out_channels=out, in_channels=inp, in_shape=on, out_shape=on)
    return found


def candidates(layers: dict[str, Geometry]) -> list[Candidate]:
    """Dense, and pairs at about an eighth, a quarter, a half and all of the ranks that save multiplications."""
    found = []
    for name, geometry in layers.items():
        for form in FORMS:
            ranks = form.ranks(geometry, 8)
            for rank in dict.fromkeys(ranks[round(share * (len(ranks) - 1))] for share in (1 / 8, 1 / 4, 1 / 2, 1) if ranks):
                params, macs = form.cost(geometry, rank)
                found.append(
                    Candidate(
                        layer=name, group=name, form=form.name, k_in=geometry.in_channels, k_out=geometry.out_channels,
                        rank=rank, precision="fp32", params=params, macs=macs, predicted_loss=0.0,
                    )
                )  # fmt: skip
    return found


def write_branches(path: Path, layers: dict[str, Geometry]) -> None:
    """One ONNX file with a branch for each layer, ended by a mean so that every branch gives little."""
    rng = np.random.default_rng(0)
    nodes, weights, inputs, outputs = [], [], [], []

    def weight(name: str, *shape: int) -> str:
        values = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1)
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(name: str, x: str, out: int, inp: int, kernel: int = 1, stride: int = 1) -> str:
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        names = [x, weight(f"{name}.weight", out, inp, kernel, kernel), weight(f"{name}.bias", out)]
        nodes.append(helper.make_node("Conv", names, [f"{name} conv"], **attributes))
        nodes.append(helper.make_node("Relu", [f"{name} conv"], [f"{name} out"]))
        return f"{name} out"

    for name, geometry in layers.items():
        inp, out = geometry.in_channels, geometry.out_channels
        x = f"{name} in"
        if geometry.kind == "conv2d":
            inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 16, *geometry.in_shape]))
            x = conv(name, conv(f"{name} before", x, inp, 16), out, inp, geometry.kernel[0], geometry.stride[0])
            y = conv(f"{name} after", x, 16, out)
        else:
            inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, *geometry.in_shape, inp]))
            if geometry.in_shape:
                nodes.append(helper.make_node("MatMul", [x, weight(f"{name}.weight.T", inp, out)], [f"{name} product"]))
                nodes.append(helper.make_node("Add", [f"{name} product", weight(f"{name}.bias", out)], [f"{name} out"]))
            else:
                names = [x, weight(f"{name}.weight", out, inp), weight(f"{name}.bias", out)]
                nodes.append(helper.make_node("Gemm", names, [f"{name} out"], transB=1))
            y = f"{name} out"
        nodes.append(helper.make_node("ReduceMean", [y], [f"{name} mean"], keepdims=0))
        outputs.append(helper.make_tensor_value_info(f"{name} mean", TensorProto.FLOAT, []))
    graph = helper.make_graph(nodes, "branches", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def estimate(target: Target, layers: dict[str, Geometry], offered: Sequence[Candidate]) -> np.ndarray:
    pricer = RooflinePricer(None, layers=layers, network_sha256="", target=target, precision="fp32", batch=1)
    return np.array([pricer.layer_us(layers[each.layer], each.rank) for each in offered])


def with_parameters(target: Target, logs: np.ndarray) -> Target:
    gflops, bandwidth, launch = np.exp(logs)
    roof = target.roofline.model_dump() | {"gflops": {"fp32": float(gflops)}, "bandwidth_gb_s": float(bandwidth)}
    return target.model_copy(update={"roofline": Roofline(**(roof | {"launch_us": float(launch)}))})


def fit(target: Target, layers: dict[str, Geometry], offered: Sequence[Candidate], measured: np.ndarray) -> Target:
    """Peak, bandwidth and launch cost with the smallest mean absolute log error; alignment and ``parallel`` stay."""

    def loss(logs: np.ndarray) -> float:
        return float(np.abs(np.log(estimate(with_parameters(target, logs), layers, offered) / measured)).mean())

    roof = target.roofline
    start = np.log([roof.gflops["fp32"], roof.bandwidth_gb_s, roof.launch_us])
    return with_parameters(target, minimize(loss, start, method="Nelder-Mead", options={"maxiter": 2000}).x)


def judge(target: Target, layers: dict[str, Geometry], offered: Sequence[Candidate], measured: np.ndarray) -> dict[str, float]:
    """Ranking of times; ranking of time ratios pair over dense; how often it is right that a pair pays; typical error."""
    found = estimate(target, layers, offered)
    dense = {each.layer: place for place, each in enumerate(offered) if each.rank is None}
    pairs = [place for place, each in enumerate(offered) if each.rank is not None]
    ours = np.array([found[place] / found[dense[offered[place].layer]] for place in pairs])
    true = np.array([measured[place] / measured[dense[offered[place].layer]] for place in pairs])
    return {
        "n": len(offered),
        "times": spearmanr(found, measured).statistic,
        "ratios": spearmanr(ours, true).statistic,
        "pays": float(((ours < 1) == (true < 1)).mean()),
        "error": float(np.exp(np.median(np.abs(np.log(found / measured))))),
    }


def main() -> None:
    load = os.getloadavg()[0]
    layers, target = shapes(), load_target("cpu")
    offered = candidates(layers)
    settings = Settings(runtime="onnxruntime", threads=1, graph_level="all", spinning=False, batch=1)
    with tempfile.TemporaryDirectory() as scratch:
        write_branches(Path(scratch) / "branches.onnx", layers)
        pricer = MeasuredPricer(
            Path(scratch) / "branches.onnx",
            layers=layers, device=LocalDevice(), settings=settings, network_sha256="", target=target, precision="fp32",
        )  # fmt: skip
        table = pricer.price(offered)
    measured = np.array([each.us for each in table.times])
    names = list(layers)
    half = [place for place, each in enumerate(offered) if names.index(each.layer) % 2 == 0]
    other = [place for place in range(len(offered)) if place not in set(half)]
    fitted = fit(target, layers, [offered[place] for place in half], measured[half])
    scores = {
        "targets/cpu.toml (from an earlier run of this), all shapes": judge(target, layers, offered, measured),
        "fitted here on every other shape, judged on those": judge(fitted, layers, [offered[i] for i in half], measured[half]),
        "the same, judged on the rest": judge(fitted, layers, [offered[i] for i in other], measured[other]),
    }
    RESULT.write_text(document(table, offered, estimate(target, layers, offered), scores, fitted.roofline, load))
    print(RESULT.read_text())


def document(
    table: PriceTable,
    offered: Sequence[Candidate],
    found: np.ndarray,
    scores: dict[str, dict[str, float]],
    fitted: Roofline,
    load: float,
) -> str:
    host = table.host
    assert host is not None
    versions = ", ".join(f"{name} {version}" for name, version in host.versions.items())
    lines = [
        "# The roofline estimate against measured times",
        "",
        f"`benchmarks/roofline.py` on {time.strftime('%Y-%m-%d')}: {host.machine}, {host.cores} cores, {host.system}; "
        f"{versions}; one thread, batch 1, fp32; load average before: {load:.2f}. {table.method}.",
        "",
        "*times*: Spearman's rank correlation of estimated and measured times. *ratios*: the same for the time of a pair over "
        "that of its dense layer, which is what a plan hangs on. *pays*: how often the estimate is right about whether the "
        "pair is faster. *error*: the median factor between estimate and measurement.",
        "",
        "| parameters | n | times | ratios | pays | error |",
        "|---|---|---|---|---|---|",
    ]
    for name, score in scores.items():
        ranked = f"{score['times']:.3f} | {score['ratios']:.3f} | {100 * score['pays']:.0f} %"
        lines.append(f"| {name} | {score['n']} | {ranked} | {score['error']:.2f} |")
    gflops = fitted.gflops["fp32"]
    lines += ["", f"Fitted here: {gflops:.0f} GFLOP/s, {fitted.bandwidth_gb_s:.1f} GB/s, {fitted.launch_us:.1f} us per kernel."]
    lines += ["", "| layer | rank | measured us | estimated us |", "|---|---|---|---|"]
    for each, price, ours in zip(offered, table.times, found, strict=True):
        lines.append(f"| {each.layer} | {each.rank or 'dense'} | {price.us:.1f} | {ours:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
