"""The authors' own LoRITa-trained ResNet20 (N = 2), compressed without fine-tuning.

    LORITA_DATA=DIR python benchmarks/authors.py        writes benchmarks/authors.md

DIR holds lorita-official/resnet20-cifar10-n2.pt and cifar10-jpeg.tar.gz. The network was trained on the original images, these
are JPEGs of them: dense and compressed are therefore also shown with batch norm's statistics estimated anew on the
calibration images, the same for both. Calibration sees training images only; the test images are looked at for this table.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from setting import HERE, heading, load, table

SHARES = (0.7, 0.6, 0.5, 0.4)
"""Of the dense network's multiply-adds."""
SAMPLES = 512


def main() -> None:
    before, data = load(), Path(os.environ["LORITA_DATA"])
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(data / "cifar10-jpeg.tar.gz") as file:
            file.extractall(scratch, filter="data")
        root = next(path.parent for path in sorted(Path(scratch).rglob("train")) if path.is_dir())
        lines = measured(root, data / "lorita-official" / "resnet20-cifar10-n2.pt")
    text = heading("The authors' ResNet20 (N = 2) on CIFAR-10 (JPEG)", "authors.py", before) + lines
    (HERE / "authors.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def measured(root: Path, checkpoint: Path) -> list[str]:
    from lorita_deploy.compress.calibrate import Calibration, calibrate
    from lorita_deploy.compress.candidates import candidates
    from lorita_deploy.compress.compressor import Compressor
    from lorita_deploy.compress.plan import solve
    from lorita_deploy.compress.rewrite import rewrite
    from lorita_deploy.compress.widths import Narrowable
    from lorita_deploy.measure.roofline import RooflinePricer
    from lorita_deploy.networks import survey
    from lorita_deploy.ports import Task, find_model
    from lorita_deploy.records import Layer
    from lorita_deploy.targets import load_target
    from lorita_deploy.train.datasets import load_dataset
    from lorita_deploy.train.published import read_published

    module = find_model("resnet20").build(10, 32)
    module.load_state_dict(read_published(checkpoint))
    module.eval()
    dataset = load_dataset(f"folder:{root}", shape=(3, 32, 32))
    inputs = [(images,) for images, _ in dataset.batches("train", 64, limit=SAMPLES)]
    test = list(dataset.batches("test", 250))
    task = Task(examples=(inputs[0][0][:1],), calibration=inputs, evaluate=lambda network: accuracy_of(network, test))
    geometries = survey(module, task.examples).geometries
    found: Calibration = calibrate(module, geometries, task, samples=SAMPLES)
    layers = [Layer(name=name, geometry=geometry, group=name, spectrum=()) for name, geometry in geometries.items()]
    offered = candidates(layers, found.record, multiple=1, precision="fp32")
    pricer = RooflinePricer(None, layers=geometries, network_sha256="", target=load_target("cpu"), precision="fp32", batch=1)
    prices = pricer.price(offered)
    narrowable = Narrowable(module, geometries, inputs, examples=task.examples)
    compressor = Compressor(module, geometries, found, inputs, narrowable=narrowable)
    macs = sum(each.macs for each in offered if each.form == "dense")

    rows = [("dense", "100.0 %", "", f"{right(module, test):.2f}", f"{right(renewed(module, inputs), test):.2f}")]
    for share in SHARES:
        plan = solve(offered, prices, budget_us=share * macs, objective="macs")
        changed = [choice for choice in plan.choices if choice.rank]
        left = f"{100 * plan.cost / macs:.1f} %"
        alone = rewrite(module, {choice.layer: choice.rank for choice in changed if choice.rank}, found.moments)
        for name, network in (("each layer by itself", alone), ("in sequence", compressor.network(changed))):
            again = f"{right(renewed(network, inputs), test):.2f}"
            rows.append((name, left, f"{plan.predicted_loss:.3f}", f"{right(network, test):.2f}", again))
    columns = ("compressed", "MACs", "predicted loss", "right, %", "right with new BN statistics, %")
    return table(columns, rows)


def right(network: object, batches: Iterable[tuple[object, object]]) -> float:
    return 100 * accuracy_of(network, batches).value


def accuracy_of(network: object, batches: Iterable[tuple[object, object]]):  # type: ignore[no-untyped-def]
    from lorita_deploy.measure.accuracy import accuracy

    return accuracy(network, batches, "test")  # type: ignore[arg-type]


def renewed(network: object, inputs: list[tuple[object, ...]]) -> object:
    from lorita_deploy.compress.recover import reestimate_batchnorm
    from lorita_deploy.compress.rewrite import duplicate

    return reestimate_batchnorm(duplicate(network), inputs)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
