"""The estimate: each term of the formula, and what else is in the network."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lorita_deploy.forms import form_geometries
from lorita_deploy.measure.roofline import SPLIT, RooflinePricer
from lorita_deploy.records import Candidate, Geometry
from lorita_deploy.targets import load_target

CONV = Geometry(
    kind="conv2d",
    out_channels=512,
    in_channels=512,
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    in_shape=(64, 64),
    out_shape=(64, 64),
)


def pricer(target, layers, path=None, precision="fp32", batch=1):
    return RooflinePricer(path, layers=layers, network_sha256="0" * 64, target=target, precision=precision, batch=batch)


@pytest.fixture
def jetson():
    return load_target("jetson")


def test_a_large_layer_runs_at_the_peak(jetson):
    expected_us = 2 * 512 * 4608 * 64 * 64 / (jetson.roofline.gflops["fp32"] * 1e3) + jetson.roofline.launch_us
    assert pricer(jetson, {"a": CONV}).layer_us(CONV, None) == pytest.approx(expected_us)


def test_a_layer_with_few_outputs_and_many_weights_is_bound_by_bandwidth(jetson):
    linear = Geometry(kind="linear", out_channels=4096, in_channels=4096)
    moved = 4 * (4096 * 4096 + 2 * 4096)
    expected_us = moved / (jetson.roofline.bandwidth_gb_s * 1e3) + jetson.roofline.launch_us
    assert pricer(jetson, {"a": linear}).layer_us(linear, None) == pytest.approx(expected_us)


def test_a_pair_pays_two_launches_and_unaligned_ranks_pay_for_the_next_multiple(jetson):
    estimate = pricer(jetson, {"a": CONV})
    tiny = Geometry(kind="linear", out_channels=8, in_channels=8)
    assert estimate.layer_us(tiny, 8) - estimate.layer_us(tiny, None) > 0.9 * jetson.roofline.launch_us
    narrow, aligned, smaller = (estimate.kernel_us(form_geometries(CONV, rank)[0]) for rank in (65, 72, 64))
    assert narrow == pytest.approx(aligned)
    launch_us = jetson.roofline.launch_us
    assert (narrow - launch_us) / (smaller - launch_us) == pytest.approx(72 / 64)


def test_small_layers_cannot_fill_the_machine(jetson):
    """Compute-bound with few outputs: the time per multiply-add grows as the outputs become fewer."""
    small = CONV.model_copy(update={"in_channels": 8, "in_shape": (4, 4), "out_shape": (4, 4), "out_channels": 64})
    outputs, n = 64 * 16, 72
    assert n < SPLIT
    peak = jetson.roofline.gflops["fp32"] * 1e3
    expected_us = 2 * outputs * n / (peak * outputs / jetson.roofline.parallel)
    assert pricer(jetson, {"a": small}).layer_us(small, None) == pytest.approx(expected_us + jetson.roofline.launch_us)


def test_a_pair_is_made_of_its_two_layers():
    first, second = form_geometries(CONV.model_copy(update={"stride": (2, 2), "out_shape": (32, 32)}), 16)
    assert (first.m, first.n, first.positions, first.stride) == (16, 4608, 1024, (2, 2))
    assert (second.m, second.n, second.positions, second.stride) == (512, 16, 1024, (1, 1))
    assert second.in_shape == (32, 32)


def test_prices_are_estimates_and_cover_the_rest_of_the_network(jetson, tmp_path):
    """One conv that may change, a ReLU that is fused, a pooling and a depthwise conv that cost a kernel each."""
    conv = CONV.model_copy(update={"in_channels": 8, "out_channels": 8, "in_shape": (16, 16), "out_shape": (16, 16)})
    weights = [
        numpy_helper.from_array(np.zeros((8, 8, 3, 3), np.float32), "a.weight"),
        numpy_helper.from_array(np.zeros((8, 1, 3, 3), np.float32), "b.weight"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["y"], name="a", pads=[1] * 4),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Conv", ["r", "b.weight"], ["z"], name="b", pads=[1] * 4, group=8),
        helper.make_node("MaxPool", ["z"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    shapes = (("x", [1, 8, 16, 16]), ("p", [1, 8, 8, 8]))
    x, p = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [p], weights), opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "dense.onnx")

    def candidate(rank):
        form = "pair" if rank else "dense"
        return Candidate(
            layer="a", group="a", form=form, k_in=8, k_out=8, rank=rank, precision="fp32", params=0, macs=0, predicted_loss=0.0
        )

    table = pricer(jetson, {"a": conv}, tmp_path / "dense.onnx").price([candidate(None), candidate(8)])
    assert (table.provenance, table.host, [price.provenance for price in table.times]) == ("estimated", None, ["estimated"] * 2)
    transfer_us = 4 * (2 * 8 * 256 + 72 + 8 * 256 + 8 * 64) / (jetson.roofline.bandwidth_gb_s * 1e3)
    assert table.rest_us == pytest.approx(2 * jetson.roofline.launch_us + transfer_us)
    assert table.network_us == pytest.approx(table.rest_us + table.times[0].us, rel=1e-4)


@pytest.mark.parametrize("open_batch", [False, True])
def test_a_batch_counts_once_whether_the_graph_holds_it_or_leaves_it_open(jetson, tmp_path, open_batch):
    batch, first = 8, "n" if open_batch else 8
    weight = numpy_helper.from_array(np.zeros((8, 1, 3, 3), np.float32), "b.weight")
    node = helper.make_node("Conv", ["x", "b.weight"], ["y"], name="b", pads=[1] * 4, group=8)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, 8, 16, 16]) for name in ("x", "y"))
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]), opset_imports=[opset]), tmp_path / "a.onnx")
    roof = jetson.roofline
    compute_us = 2 * batch * 8 * 256 * 9 / (roof.gflops["fp32"] * 1e3)
    transfer_us = 4 * (2 * batch * 8 * 256 + 72) / (roof.bandwidth_gb_s * 1e3)
    found = pricer(jetson, {}, tmp_path / "a.onnx", batch=batch).rest_us()
    assert found == pytest.approx(roof.launch_us + max(compute_us, transfer_us))
