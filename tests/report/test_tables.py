"""Tables of networks, plans and proofs."""

import io

import pytest
from rich.console import Console

from lorita_deploy.records import Accuracy, EpochRecord, GpuTimes, Prediction, Recipe, TrainRecord
from lorita_deploy.report import facts, networks, page, proofs
from lorita_deploy.report.distributions import size_rows
from lorita_deploy.report.table import Table
from lorita_deploy.report.terminal import render
from lorita_deploy.report.tradeoff import tradeoff


def column(table, name):
    place = [each.removeprefix(">") for each in table.columns].index(name)
    return [row[place] for row in table.rows]


def test_layers_show_size_loss_and_time(plan, collapsed):
    table = networks.layers(plan, collapsed)
    assert column(table, "rank") == ["8", "full"]
    # 8 (64 + 288) + 64 bias; 64 * 10 + 10
    assert column(table, "params") == ["2.88 k", "650"]
    assert column(table, "MACs") == ["180 k", "640"]
    assert column(table, "numerical rank") == ["3/64", "10/10"]
    assert column(table, "µs after") == ["137", "5.00"]


def test_layers_say_why_where_prices_are_at_hand(plan, collapsed, prices, offered):
    table = networks.layers(plan, collapsed, candidates=offered, prices=prices)
    assert column(table, "why") == ["2.77x faster", "every pair is slower (best: rank 8, 1.30x the time)"]
    cheaper = prices.model_copy(
        update={
            "times": tuple(
                time.model_copy(update={"us": min(time.us, 3.0)} if "head|pair" in time.candidate else {})
                for time in prices.times
            )
        }
    )
    table = networks.layers(plan, collapsed, candidates=offered, prices=cheaper)
    assert column(table, "why")[1] == "faster pairs lose too much (rank 8: 0.60x the time, predicted loss 0.50)"


def test_estimates_are_shares_and_ratios(estimated):
    table = networks.layers(estimated.plan, estimated.collapsed)
    assert not [name for name in table.columns if "µs" in name]
    assert column(table, "time over dense") == ["0.36", "1.0"]


def test_unknown_tails_are_not_made_up(make_receipt):
    table = proofs.latency(make_receipt())
    assert column(table, "p99") == ["n/a (n=12)", "n/a (n=12)"]


def test_times_without_transfers_and_energy_have_a_table_of_their_own(make_receipt, int8):
    receipt = make_receipt(dense=2.0, compressed=1.0)
    assert proofs.on_the_board(receipt) == []
    gpu = GpuTimes(
        samples_ms=(1.5,) * 12, n=12, median_ms=1.5, median_ci95_ms=(1.4, 1.6), p90_ms=None, p90_ci95_ms=None, p95_ms=None,
        p95_ci95_ms=None, p99_ms=None, p99_ci95_ms=None,
    )  # fmt: skip
    energy = int8.receipt.series[0].energy
    dense = receipt.series[0].model_copy(update={"gpu": gpu, "energy": energy, "throughput_per_s": 640.0})
    (table,) = proofs.on_the_board(receipt.model_copy(update={"series": (dense, receipt.series[1])}))
    assert [row[0] for row in table.rows] == ["dense"]
    assert "not by a wall meter" in table.note
    assert table.rows[0][2:] == ("1.50", "", "640", "9.20", "3.07")


def test_every_precision_says_why_it_was_chosen_or_not(int8):
    (fp32, fp16, lowest), found = proofs.precisions(int8.precision).rows, int8.precision
    assert fp32[2:6] == ("340 of 360 right (94.44 %)", "1", "", "2.00 MB")
    assert (fp16[1], lowest[1]) == ("refused", "chosen")
    assert fp16[-1] == found.trials[1].refused
    assert lowest[2:7] == ("339 of 360 right (94.17 %)", "0.40", "0.39-0.41", "0.510 MB", "2")
    assert lowest[-1] == "the fastest that is right often enough"

    def why(asked, chosen, **changes):
        trials = tuple(each.model_copy(update=changes) if each.precision == "fp16" else each for each in found.trials)
        tried = found.model_copy(update={"asked": asked, "chosen": chosen, "trials": trials})
        return {row[0]: row[-1] for row in proofs.precisions(tried).rows}

    assert why("auto", "int8", refused=None)["fp16"] == "no faster than fp32"
    assert why("auto", "int8", refused=None, ratio=None, estimated=0.6)["fp16"] == "slower than int8"
    assert why("int8", "int8")["int8"] == "asked for, and right often enough"
    assert why("auto", "fp32")["fp32"] == "nothing lower is both right often enough and faster"


def test_an_estimated_precision_is_no_time(int8):
    trials = tuple(each.model_copy(update={"ratio": None, "estimated": 0.55}) for each in int8.precision.trials[1:])
    assert proofs.precisions(int8.precision.model_copy(update={"trials": trials})).rows[0][3:5] == ("0.55", "estimated")


def test_summary_tells_the_energy_where_the_board_measured_it(report, int8):
    assert ("energy a call, by its own sensors", "9.20 mJ", "4.10 mJ") in facts.summary(int8).rows
    assert not [row for row in facts.summary(report).rows if "energy" in row[0]]


def test_summary(report):
    rows = {row[0]: row[1:] for row in facts.summary(report).rows}
    assert rows["artifacts, test images"] == ("352 of 360 right (97.78 %)", "350 of 360 right (97.22 %)")
    assert rows["networks, validation images"] == ("340 of 360 right (94.44 %)", "339 of 360 right (94.17 %)")
    assert rows["file"] == ("2.00 MB", "0.700 MB")
    assert rows["median, cpu, measured"] == ("0.432 ms", "0.211 ms")


def test_offers_of_a_layer_that_stays_dense_say_why(plan, prices, offered):
    table = networks.offers(plan, "head", offered, prices)
    assert column(table, "") == ["taken", "no faster, and loses more"]
    assert table.note.endswith("every pair is slower (best: rank 8, 1.30x the time)")
    narrow = offered[3].model_copy(update={"form": "narrow", "k_in": 32, "rank": None})
    cheap = prices.times[3].model_copy(update={"candidate": narrow.key, "us": 3.0})
    narrower = prices.model_copy(update={"times": (*prices.times[:3], cheap)})
    table = networks.offers(plan, "head", (*offered[:3], narrow), narrower)
    assert table.note.endswith("only narrower forms were offered, and its channels all stay")


def test_what_was_not_on_offer_is_not_told_as_taken(plan, prices, offered):
    edited = plan.choices[0].model_copy(update={"rank": 30})
    changed = plan.model_copy(update={"choices": (edited, *plan.choices[1:])})
    table = networks.offers(changed, "conv", offered, prices)
    assert column(table, "") == ["", ""]
    assert table.note.endswith("pair 30 was not on offer")


def test_a_plan_that_was_raced_on_the_way_is_told_as_measured(report):
    plan = report.plan
    early = plan.probes[0].model_copy(update={"predicted_us": 33.0})
    other = plan.probes[0].model_copy(update={"predicted_us": 30.0, "accepted": False})
    raced = (Prediction(predicted_us=33.0, measured_us=52.6), Prediction(predicted_us=50.0, measured_us=52.6))
    searched = plan.model_copy(update={"probes": (early, other), "predictions": raced})
    table = networks.probes(searched)
    assert column(table, "speed-up") == ["8.17x measured", "14.33x predicted"]
    assert "13.03x predicted, 8.17x measured; 8.60x predicted, 8.17x measured" in table.note
    assert "8.17x measured" in tradeoff(report.model_copy(update={"plan": searched}), 700.0)
    assert column(networks.probes(plan), "speed-up") == ["2.30x predicted"]


@pytest.mark.parametrize(("epochs", "told"), [(2, False), (4, True)])
def test_what_may_be_kept_of_a_training_is_told(epochs, told):
    found = [
        EpochRecord(
            epoch=number,
            train_loss=1.0,
            validation=Accuracy(metric="accuracy", split="validation", correct=5, total=9),
            rank_fraction=1.0,
            images_per_s=10.0,
        )
        for number in (1, 2)
    ]
    record = TrainRecord(
        model="tiny",
        data_sha256="d",
        recipe=Recipe(epochs=epochs, batch_size=8, lr=0.1, weight_decay=0.0),
        device="cpu",
        factored=(),
        left_alone=(),
        epochs=tuple(found),
        best_epoch=1,
        weights_sha256="w",
    )
    assert ("last quarter" in networks.training(record).note) == told


def test_where_fp32_ships_after_all_its_files_and_times_are_told(back_to_fp32):
    rows = {row[0]: row[1:] for row in facts.summary(back_to_fp32).rows}
    assert rows["file"] == ("2.00 MB", "0.700 MB")
    assert rows["median, cpu, measured"] == ("0.800 ms", "0.0800 ms")
    drawn = {name: (before, after) for name, *_, before, after in size_rows(back_to_fp32)}
    assert drawn["file"] == rows["file"]
    assert ">10.00x<" in page.render(back_to_fp32), "the tile of the race tells what ships too"
    named = dict(facts.hashes(back_to_fp32).rows)
    assert named["compressed-fp32.onnx"] == "1" * 64
    assert named["compressed, raced along"] == "c" * 64


@pytest.mark.parametrize("width", [40, 70, *range(80, 125), 200])
def test_a_terminal_of_any_width_shows_every_cell(plan, collapsed, width):
    file = io.StringIO()
    table = networks.layers(plan, collapsed)
    Console(file=file, width=width).print(render(table, width))
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    for row in table.rows:
        for cell in row:
            assert " ".join(cell.split()) in " ".join(shown.split()) or " " in cell, cell


def test_a_name_longer_than_the_terminal_leaves_room_for_the_values():
    name = "encoder.layers." * 6
    table = Table("", ("layer", "form", ">us"), ((name, "pair 16", "123.4"), ("head", "dense", "5.6")))
    file = io.StringIO()
    Console(file=file, width=40).print(render(table, 40))
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= 40
    for value in ("pair 16", "123.4", "dense", "5.6"):
        assert value in shown, shown
    assert name in "".join(shown.split())


def test_ratios_of_a_thousand_and_more_are_written_out(report):
    less = report.model_copy(update={"params": (12_345_678, 10_000)})
    assert "÷ 1,230<" in page.render(less)
    assert "e+03" not in page.render(less)
