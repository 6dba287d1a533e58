"""Prices in context: the variants are real networks, every node finds its layer, the sums add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.helper import make_node
from small_onnx import write_small_onnx

from lorita_deploy.devices.local import LocalDevice
from lorita_deploy.errors import BadArtifact, BadRecord, EnvironmentDiffers, PlanMismatch
from lorita_deploy.forms import FORMS
from lorita_deploy.measure.layer_times import MeasuredPricer, layer_times, overheads, time_at
from lorita_deploy.measure.price_table import TablePricer
from lorita_deploy.measure.variants import empty_chain, find_layers, ladder_variants, make_variant
from lorita_deploy.records import Candidate, Geometry, LayerTime, NodeTime, PriceTable, ProfiledArtifact, Settings
from lorita_deploy.targets import load_target, this_host

SETTINGS = Settings(runtime="onnxruntime", threads=1, graph_level="all", spinning=False, batch=1)
CONV = {"kernel": (3, 3), "padding": (1, 1), "dilation": (1, 1)}


def geometries(width: int) -> dict[str, Geometry]:
    square = {"out_channels": width, "in_channels": width, "in_shape": (16, 16)}
    return {
        "stem": Geometry(
            kind="conv2d", out_channels=width, in_channels=3, stride=(1, 1), in_shape=(16, 16), out_shape=(16, 16), **CONV
        ),
        "body.0": Geometry(kind="conv2d", stride=(1, 1), out_shape=(16, 16), **square, **CONV),
        "body.1": Geometry(kind="conv2d", stride=(2, 2), out_shape=(8, 8), **square, **CONV),
        "tokens": Geometry(kind="linear", out_channels=48, in_channels=width, in_shape=(64,), out_shape=(64,)),
        "head": Geometry(kind="linear", out_channels=10, in_channels=48),
    }


def candidates(layers: dict[str, Geometry]) -> list[Candidate]:
    found = []
    for name, geometry in layers.items():
        for form in FORMS:
            for rank in form.ranks(geometry, 8):
                params, macs = form.cost(geometry, rank)
                found.append(
                    Candidate(
                        layer=name, group=name, form=form.name, k_in=geometry.in_channels, k_out=geometry.out_channels,
                        rank=rank, precision="fp32", params=params, macs=macs, predicted_loss=0.0,
                    )
                )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> tuple[PriceTable, dict[str, Geometry], Path]:
    folder = tmp_path_factory.mktemp("pricing")
    layers = geometries(64)
    pricer = MeasuredPricer(
        write_small_onnx(folder / "dense.onnx", 64),
        layers=layers, device=LocalDevice(), settings=SETTINGS, network_sha256="0" * 64, target=load_target("cpu"),
        precision="fp32",
    )  # fmt: skip
    return pricer.price(candidates(layers)), layers, folder


def test_every_candidate_has_a_measured_price(priced: tuple[PriceTable, dict[str, Geometry], Path]) -> None:
    table, layers, folder = priced
    assert [each.candidate for each in table.times] == [each.key for each in candidates(layers)]
    assert all(each.us > 0 for each in table.times)
    assert table.provenance == "measured"
    assert table.host is not None
    assert table.host.versions["onnxruntime"] == onnxruntime.__version__
    assert sorted(path.name for path in folder.glob("*.onnx")) == ["dense.onnx"], "the variants are cleared away"


def test_the_dense_network_is_the_sum_of_its_layers_and_the_rest(priced: tuple[PriceTable, dict[str, Geometry], Path]) -> None:
    table, _, _ = priced
    dense = sum(each.us for each in table.times if "|dense|" in each.candidate)
    assert dense + table.rest_us == pytest.approx(table.network_us)
    assert dense > 0.5 * table.network_us


def test_prices_tell_a_heavy_layer_from_a_light_one(priced: tuple[PriceTable, dict[str, Geometry], Path]) -> None:
    table, _, _ = priced
    price = {each.candidate: each.us for each in table.times}
    assert price["body.0|dense|64x64|full|fp32"] > 1.5 * price["body.1|dense|64x64|full|fp32"], "four times the work"
    assert price["body.0|dense|64x64|full|fp32"] > price["body.0|pair|64x64|16|fp32"], "a quarter of the work"


def test_a_variant_keeps_every_shape_and_computes_sane_numbers(tmp_path: Path) -> None:
    model = onnx.load(write_small_onnx(tmp_path / "dense.onnx", 32))
    layers = geometries(32)
    assert find_layers(model, layers) == set(layers)
    variant = make_variant(model, layers, {"stem": 8, "body.0": 16, "body.1": 8, "tokens": 8, "head": 8})
    onnx.checker.check_model(variant.model, full_check=True)
    assert len(variant.model.graph.node) == len(model.graph.node) + 5
    shapes = [tuple(weight.dims) for weight in variant.model.graph.initializer]
    for shape in ((8, 3, 3, 3), (32, 8, 1, 1), (16, 32, 3, 3), (32, 16, 1, 1), (32, 8), (8, 48), (8, 48), (10, 8)):
        assert shape in shapes
    session = onnxruntime.InferenceSession(variant.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)})
    assert output.shape == (1, 10)
    assert 1e-6 < np.abs(output).max() < 1e6
    assert model == onnx.load(tmp_path / "dense.onnx"), "the dense network is left as it was"


def test_every_layer_that_runs_is_found_again_under_the_runtimes_own_names(tmp_path: Path) -> None:
    """Fused, laid out anew, or both: what is heavy in the optimised graph belongs to a layer."""
    model = onnx.load(write_small_onnx(tmp_path / "dense.onnx", 32))
    layers = geometries(32)
    for ranks in ({}, dict.fromkeys(layers, 8)):
        variant = make_variant(model, layers, ranks)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(variant.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
        heavy = [node for node in nodes if any(word in node.op_type for word in ("Conv", "Gemm", "MatMul"))]
        owners = [variant.owner(node.name, None) for node in heavy]
        per_layer = 2 if ranks else 1
        assert sorted(str(owner) for owner in owners) == sorted(list(layers) * per_layer)


def test_what_follows_a_layer_is_its_own_and_the_rest_is_nobodys(tmp_path: Path) -> None:
    model = onnx.load(write_small_onnx(tmp_path / "dense.onnx"))
    variant = make_variant(model, geometries(16), {})
    owners = dict(
        zip((node.op_type + str(place) for place, node in enumerate(model.graph.node)), variant.owners.values(), strict=True)
    )
    assert owners["Relu1"] == "stem"
    assert owners["Add3"] == "body.0", "the residual sum is fused into the convolution before it"
    assert owners["Reshape7"] == "body.1", "its outputs in another arrangement"
    assert owners["ReduceMean10"] is None
    assert variant.owner("ReorderOutput_token_7", "stem") == "stem"


def test_an_attentions_products_are_its_keys_and_values() -> None:
    """Their cost falls with the widths of the heads."""
    nodes = [make_node("MatMul", ["x", f"{name}.weight"], [name]) for name in "qkv"]
    nodes += [make_node("Reshape", [name, "heads"], [f"{name}h"]) for name in "qkv"]
    orders = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    nodes += [make_node("Transpose", [f"{name}h"], [f"{name}t"], perm=perm) for name, perm in orders.items()]
    nodes += [make_node("MatMul", ["qt", "kt"], ["scores"]), make_node("Softmax", ["scores"], ["weights"])]
    nodes += [make_node("MatMul", ["weights", "vt"], ["mixed"]), make_node("Transpose", ["mixed"], ["back"], perm=orders["q"])]
    nodes += [make_node("Reshape", ["back", "flat"], ["joined"]), make_node("MatMul", ["joined", "o.weight"], ["y"])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "attention", [], []))
    names = [node.output[0] for node in model.graph.node]
    layers = {each: Geometry(kind="linear", out_channels=8, in_channels=8) for each in "qkvo"}
    owners = dict(zip(names, make_variant(model, layers, {}).owners.values(), strict=True))
    assert (owners["scores"], owners["weights"], owners["mixed"], owners["back"], owners["y"]) == ("k", None, "v", "v", "o")


def test_a_depthwise_convolution_goes_with_the_layer_before_it() -> None:
    """Its time falls with that layer's width."""
    weights = {"point.weight": (24, 8, 1, 1), "deep.weight": (24, 1, 3, 3), "grouped.weight": (24, 12, 3, 3)}
    names = list(weights)
    inputs = ["x", "point", "deep"]
    nodes = [
        make_node("Conv", [read, name], [name.removesuffix(".weight")], group=24 // weights[name][1])
        for read, name in zip(inputs, names, strict=True)
    ]
    nodes[0].attribute[0].i = 1
    tensors = [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "convolutions", [], [], tensors))
    layers = {"point": Geometry(kind="conv2d", out_channels=24, in_channels=8, kernel=(1, 1))}
    assert list(make_variant(model, layers, {}).owners.values()) == ["point", "point", None]


def test_the_ladder_measures_every_rank_and_mixes_them() -> None:
    ranks = {"a": [8, 16, 24], "b": [8, 16, 24, 32, 40], "c": []}
    first, *others = ladder_variants(ranks)
    assert first == {}
    assert len(others) == 5
    for layer, rungs in ranks.items():
        assert sorted({variant[layer] for variant in others if layer in variant}) == rungs


def test_a_ladder_too_long_is_thinned_with_both_ends_kept() -> None:
    variants = ladder_variants({"a": list(range(8, 808, 8))}, most=6)
    assert len(variants) == 6
    seen = sorted(variant["a"] for variant in variants[1:])
    assert (seen[0], seen[-1]) == (8, 800)


def test_between_measured_ranks_the_staircase_is_respected() -> None:
    times = {("a", None): 100.0, ("a", 8): 12.0, ("a", 24): 32.0, ("a", 16): 10.0, ("a", 64): 40.0}
    assert time_at(times, "a", 16) == 10.0
    assert time_at(times, "a", 32) == pytest.approx(20.0), "between 16 and 64, the other full blocks"
    assert time_at(times, "a", 12) == pytest.approx(17.0), "between 8 and 24, which do not fill theirs either"
    assert time_at(times, "a", 40) == 32.0, "level outside"
    with pytest.raises(KeyError):
        time_at(times, "b", None)


def test_the_profilers_own_cost_is_taken_off_and_repeats_are_pooled(tmp_path: Path) -> None:
    model = onnx.load(write_small_onnx(tmp_path / "dense.onnx"))
    variant = make_variant(model, geometries(16), {"head": 8})
    places = {node.op_type + str(place): node.name for place, node in enumerate(variant.model.graph.node)}

    def chain(length: int, whole_us: float) -> ProfiledArtifact:
        nodes = tuple(NodeTime(name=f"@{place}@", op="Neg", us=2.5) for place in range(length))
        return ProfiledArtifact(name="chain", sha256="", runs=1, whole_us=whole_us, nodes=nodes)

    call_us, node_us = overheads(chain(20, 11.0), chain(120, 61.0))
    assert (call_us, node_us) == (pytest.approx(1.0), pytest.approx(-2.0)), "half a microsecond each, and one for the call"

    def run(us: float) -> ProfiledArtifact:
        named = [(f"{places['Conv0']}_nchwc", 10.0), ("ReorderOutput", 5.0), (places["ReduceMean10"], 9.0)]
        named += [(f"fused {places['Gemm11']}", us), (places["Gemm12"], 3.0)]
        nodes = tuple(NodeTime(name=name, op="?", us=each) for name, each in named)
        return ProfiledArtifact(name="v", sha256="", runs=1, whole_us=40.0, nodes=nodes)

    widths = {"stem": (3, 8), "head": (64, 10)}
    times = layer_times([(variant, run(us), {"head": 8}, widths) for us in (4.0, 100.0, 5.0)], -1.0)
    assert times == {("stem", (3, 8, None)): 13.0, ("head", (64, 10, 8)): 6.0}


def test_the_empty_chain_runs() -> None:
    chain = empty_chain(5)
    onnx.checker.check_model(chain, full_check=True)
    session = onnxruntime.InferenceSession(chain.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x0": np.ones(1, np.float32)})[0] == -1


def test_a_layer_that_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    layers = {**geometries(16), "ghost": geometries(16)["head"]}
    pricer = MeasuredPricer(
        write_small_onnx(tmp_path / "dense.onnx"),
        layers=layers, device=LocalDevice(), settings=SETTINGS, network_sha256="", target=load_target("cpu"), precision="fp32",
    )  # fmt: skip
    with pytest.raises(BadArtifact, match=r"ghost\.weight"):
        pricer.price(candidates(layers))


def test_what_the_runtime_works_out_when_it_loads_takes_next_to_nothing(tmp_path: Path) -> None:
    """A layer on a constant, as of learned queries: no run holds a node of it."""
    path = write_small_onnx(tmp_path / "dense.onnx")
    model = onnx.load(path)
    graph = model.graph
    for name, values in (("query", np.ones((1, 64))), ("folded.weight", np.full((64, 10), 0.1))):
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    (result,) = graph.output
    last = next(node for node in graph.node if result.name in node.output)
    last.output[0] = "before"
    graph.node.append(make_node("MatMul", ["query", "folded.weight"], ["of_query"], name="folded"))
    graph.node.append(make_node("Add", ["before", "of_query"], [result.name], name="sum"))
    onnx.save(model, path)
    layers = {**geometries(16), "folded": Geometry(kind="linear", out_channels=10, in_channels=64)}
    pricer = MeasuredPricer(
        path,
        layers=layers, device=LocalDevice(), settings=SETTINGS, network_sha256="", target=load_target("cpu"), precision="fp32",
    )  # fmt: skip
    prices = {each.candidate: each.us for each in pricer.price(candidates(layers)).times}
    folded = {us for candidate, us in prices.items() if candidate.startswith("folded|")}
    assert len(folded) == 1, "no form of it is faster than another"
    assert folded.pop() < 0.2 < prices["head|dense|48x10|full|fp32"]


# ---------------------------------------------------------------------------------------------- tables


def table_pricer(path: Path, layers: dict[str, Geometry], table: PriceTable, **changes: object) -> TablePricer:
    arguments: dict = {
        "layers": layers, "host": table.host, "settings": SETTINGS, "precision": "fp32", "network_sha256": "1" * 64,
        "target": load_target("cpu"), **changes,
    }  # fmt: skip
    return TablePricer(path, **arguments)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, PriceTable, dict[str, Geometry]]:
    """A table as measured on some host; made up, to be exact."""
    layers = geometries(64)
    table = PriceTable(
        network_sha256="0" * 64, target="cpu", runtime="onnxruntime", precision="fp32", threads=1, batch=1, host=this_host(),
        provenance="measured", method="", network_us=100.0, rest_us=1.0, geometries=layers,
        times=tuple(LayerTime(candidate=each.key, us=5.0, provenance="measured") for each in candidates(layers)),
    )  # fmt: skip
    return table.save(tmp_path / "prices.json"), table, layers


def test_a_table_from_this_host_is_as_good_as_measured(stored: tuple[Path, PriceTable, dict[str, Geometry]]) -> None:
    path, table, layers = stored
    found = table_pricer(path, layers, table).price(candidates(layers)[:3])
    assert found.provenance == "measured"
    assert len(found.times) == 3
    assert found.network_sha256 == "1" * 64


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"settings": SETTINGS.model_copy(update={"threads": 2})}, "threads 1 there, 2 here"),
        ({"machine": "Jetson Orin Nano"}, "machine"),
    ],
)
def test_a_table_from_elsewhere_is_refused_unless_trusted(
    stored: tuple[Path, PriceTable, dict[str, Geometry]], changes: dict, word: str
) -> None:
    path, table, layers = stored
    if "machine" in changes:
        assert table.host is not None
        changes = {"host": table.host.model_copy(update=changes)}
    with pytest.raises(EnvironmentDiffers, match=word):
        table_pricer(path, layers, table, **changes).price(candidates(layers))
    trusted = table_pricer(path, layers, table, **changes, trust=True).price(candidates(layers))
    assert trusted.provenance == "tabled"
    assert {each.provenance for each in trusted.times} == {"tabled"}
    assert trusted.host == table.host, "where it was measured is not forgotten"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"settings": SETTINGS.model_copy(update={"batch": 8})}, "batch 1 there, 8 here"),
        ({"precision": "fp16"}, "precision fp32 there, fp16 here"),
        ({"target": load_target("jetson-nano")}, "target cpu there, jetson-nano here"),
    ],
)
def test_a_table_of_something_else_is_refused_trusted_or_not(
    stored: tuple[Path, PriceTable, dict[str, Geometry]], changes: dict, word: str
) -> None:
    path, table, layers = stored
    for trust in (False, True):
        with pytest.raises(EnvironmentDiffers, match=word) as caught:
            table_pricer(path, layers, table, **changes, trust=trust).price(candidates(layers))
        assert "trust" not in str(caught.value)


def test_a_table_of_another_network_is_refused(stored: tuple[Path, PriceTable, dict[str, Geometry]]) -> None:
    path, table, layers = stored
    larger = {**layers, "body.0": layers["body.0"].model_copy(update={"out_shape": (32, 32)})}
    with pytest.raises(PlanMismatch, match=r"body\.0"):
        table_pricer(path, larger, table).price(candidates(layers))
    with pytest.raises(BadRecord, match="have no price"):
        table_pricer(path, {}, table).price(candidates(geometries(80)))
