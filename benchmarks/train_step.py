"""What LoRITa costs in training: time and memory of a step, against the plain network and against the published form.

    python benchmarks/train_step.py resnet20 vit            about four minutes on two cores; without names VGG16 as well
    python benchmarks/train_step.py vgg16 --precisions bf16
    python benchmarks/train_step.py resnet20 --precisions "fp32 compiled" --depths 3
    python benchmarks/train_step.py --show                  only write train_step.md again

The published form runs N layers on the activations: the layer, then N - 1 square ones (1x1) on its outputs. Steps of all
variants are interleaved in random order; ratios are taken within each round, and their median is held against the bars: of
wall time, which is what people wait for, so the machine must be quiet. On a CPU the median of processor time stands beside it,
which other work disturbs less. Memory is what tensors hold at the peak of a step, by torch's allocators: a process holds more,
by tens of megabytes that depend on what the C library gives back when. Each configuration (network, type, device) runs in a
process of its own and is kept in train_step.json, so that the benchmark may be run in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable

import torch
from setting import HERE, keep, load
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from lorita_deploy.ports import find_model
from lorita_deploy.targets import this_host
from lorita_deploy.train.composition import factorize
from lorita_deploy.train.kept import composed_once
from lorita_deploy.train.schedule import make_optimizer

RESULTS, PAGE = HERE / "train_step.json", HERE / "train_step.md"
MODELS, DEPTHS, PRECISIONS = ("resnet20", "vgg16", "vit"), (2, 3, 4), ("fp32", "bf16")
COMPILED = tuple(f"{precision} compiled" for precision in PRECISIONS)
"""All variants go through torch.compile, the plain network too."""
BARS = {"resnet20": 1.05, "vit": 1.05, "vgg16": 1.15}
"""At N = 3 and batch 128, ratio to plain."""
SETTLED = 0.1
"""A middle half of the ratios that is wider says more about the machine than about the step."""
BATCH, WARM_UP, FEWEST, CLASSES = 128, 2, 20, 10
SECOND = "second step"


class Published(nn.Module):
    """A layer and N - 1 square ones behind it, with nothing between."""

    def __init__(self, layer: nn.Module, depth: int) -> None:
        super().__init__()
        if isinstance(layer, nn.Linear):
            squares = [nn.Linear(layer.out_features, layer.out_features, bias=False) for _ in range(depth - 1)]
        else:
            squares = [nn.Conv2d(layer.out_channels, layer.out_channels, 1, bias=False) for _ in range(depth - 1)]
        squares[-1].bias, layer.bias = layer.bias, None
        self.chain = nn.Sequential(layer, *squares)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.chain(x)


def build(name: str, form: str, depth: int) -> nn.Module:
    torch.manual_seed(0)
    spec = find_model(name)
    network = spec.build(CLASSES, spec.input_size)
    if form == "composed":
        factorize(network, depth)
    elif form == "published":
        for parent in list(network.modules()):
            for child, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    setattr(parent, child, Published(layer, depth))
    return network


def stepper(name: str, form: str, depth: int, precision: str, device: str) -> Callable[[], None]:
    """One training step, as the trainer takes it."""
    spec = find_model(name)
    network = build(name, form, depth).to(device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(network, spec.recipe)
    x = torch.randn(BATCH, *spec.input_shape(), device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (BATCH,), device=device)
    run = torch.compile(network) if precision in COMPILED else network

    def step() -> None:
        with composed_once(network):
            with torch.autocast(device, torch.bfloat16, enabled=precision.startswith("bf16")):
                logits = run(x)
            nn.functional.cross_entropy(logits.float(), y).backward()
        if spec.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), spec.recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def times(name: str, precision: str, device: str, depths: tuple[int, ...], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor seconds of each round, by variant."""
    variants = {"plain": ("plain", 1)} | {f"{form} {n}": (form, n) for n in depths for form in ("composed", "published")}
    steps = {label: stepper(name, form, n, precision, device) for label, (form, n) in variants.items()}
    found: dict[str, list[tuple[float, float]]] = {label: [] for label in steps}
    order, shuffle = list(steps), random.Random(0)
    for i in range(-WARM_UP, rounds):
        shuffle.shuffle(order)
        for label in order:
            start, busy = time.perf_counter_ns(), time.process_time_ns()
            steps[label]()
            if i >= 0:
                found[label].append(((time.perf_counter_ns() - start) / 1e9, (time.process_time_ns() - busy) / 1e9))
    return found


def memory(name: str, form: str, depth: int, precision: str, device: str) -> int:
    """Bytes in tensors at the peak of the second step: network, optimiser and all."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        step = stepper(name, form, depth, precision, device)
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step = stepper(name, form, depth, precision, device)
        step()
        with record_function(SECOND):
            step()
    events = profiled.profiler.kineto_results.events()
    (start,) = (event.start_ns() for event in events if event.name() == SECOND)
    held = peak = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        if event.start_ns() >= start:
            peak = max(peak, held)
    return peak


def apart(work: Callable[[], object]) -> object:
    """The result of ``work``, done in a child process that starts with torch loaded and nothing computed.

    Nothing may be computed in this process itself: a child of one whose threads have started waits for them for ever.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as out:
            json.dump(work(), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as source:
        text = source.read()
    _, status = os.waitpid(child, 0)
    if status or not text:
        raise SystemExit(f"a measurement ended with status {status}")
    return json.loads(text)


def measure(name: str, precision: str, device: str, depths: tuple[int, ...], rounds: int) -> dict[str, object]:
    before = load()
    seconds = apart(lambda: times(name, precision, device, depths, rounds))
    plain = seconds["plain"]
    peak = {"plain": apart(lambda: memory(name, "plain", 1, precision, device))}
    rows = {}
    whole = {n: apart(lambda n=n: sum(p.numel() for p in build(name, "composed", n).parameters())) for n in (1, *depths)}
    for n in depths:
        row: dict[str, object] = {}
        for form in ("composed", "published"):
            pairs = list(zip(seconds[f"{form} {n}"], plain, strict=True))
            wall, busy = (sorted(a[kind] / b[kind] for a, b in pairs) for kind in (0, 1))
            quarter = len(pairs) // 4
            row[form] = {
                "ratio": statistics.median(wall),
                "middle_half": (wall[quarter], wall[-1 - quarter]),
                "busy": statistics.median(busy),
                "fastest": min(a for a, _ in seconds[f"{form} {n}"]) / min(a for a, _ in plain),
                "extra_bytes": apart(lambda form=form, n=n: memory(name, form, n, precision, device)) - peak["plain"],
            }
        # The factors beyond the plain weights, with gradient and momentum (AdamW: two moments), and one composed copy.
        states = 4 if find_model(name).recipe.optimizer == "adamw" else 3
        row["allowed_bytes"] = 4 * (states * (whole[n] - whole[1]) + whole[1])
        rows[str(n)] = row
    return {
        "model": name,
        "precision": precision,
        "device": apart(torch.cuda.get_device_name) if device == "cuda" else f"{this_host().machine}, {os.cpu_count()} cores",
        "rounds": rounds,
        "torch": torch.__version__.split("+")[0],
        "plain_s": statistics.median(wall for wall, _ in plain),
        "load": before,
        "plain_bytes": peak["plain"],
        "depths": rows,
    }


def page(results: dict[str, dict]) -> str:
    lines = [
        "# What a training step costs",
        "",
        f"`python benchmarks/train_step.py`: batch {BATCH}, channels-last, the trainer's step (forward, backward, clipping "
        "where the recipe clips, optimiser); ratios of wall time to the plain network, median over interleaved rounds, with "
        "the middle half of them; behind the slashes the median of processor time, and fastest round over fastest round. "
        "*composed* is this library, *published* runs N layers on the activations. Memory is what the peak has more than the "
        "plain network's; *allowed* is the factors with gradient and optimiser state and one composed copy.",
        "",
        "| network | type | N | composed | published | bar | memory composed | allowed | published |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    missed, unsettled = [], []
    for result in results.values():
        for n, row in result["depths"].items():
            ours, theirs = row["composed"], row["published"]
            bar = BARS[result["model"]] if n == "3" else None
            where = f"{result['model']}, {result['precision']}, N = {n}, {result['device']}"
            low, high = ours["middle_half"]
            if high - low > SETTLED:
                unsettled.append(f"{where}: half of the ratios lie outside {low:.2f}-{high:.2f}")
            if bar and ours["ratio"] > bar:
                missed.append(f"{where}: {ours['ratio']:.3f} of a plain step, bar {bar}")
            if ours["ratio"] > theirs["ratio"]:
                missed.append(f"{where}: slower than the published form ({ours['ratio']:.3f} against {theirs['ratio']:.3f})")
            if ours["extra_bytes"] > row["allowed_bytes"]:
                missed.append(f"{where}: {_mb(ours['extra_bytes'])} more than plain, {_mb(row['allowed_bytes'])} allowed")
            cells = (
                *(result[key] for key in ("model", "precision")),
                n,
                *(
                    f"{each['ratio']:.3f} ({each['middle_half'][0]:.2f}-{each['middle_half'][1]:.2f}) / {each['busy']:.3f} / "
                    f"{each['fastest']:.3f}"
                    for each in (ours, theirs)
                ),
                bar or "",
                *(_mb(size) for size in (ours["extra_bytes"], row["allowed_bytes"], theirs["extra_bytes"])),
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "Plain steps: "]
    lines[-1] += "; ".join(
        f"{r['model']} {r['precision']} {1000 * r['plain_s']:.0f} ms, {_mb(r['plain_bytes'])} "
        f"({r['rounds']} rounds, load {r['load']:.1f})"
        for r in results.values()
    )
    hosts = sorted({f"{r['device']}, torch {r['torch']}" for r in results.values()})
    lines += ["", f"Run on: {'; '.join(hosts)}.", ""]
    lines += ["Bars missed:", "", *(f"* {each}" for each in missed)] if missed else ["No bar was missed."]
    if unsettled:
        lines += ["", "Not settled, other work was on the cores; these rows decide nothing and are to be run again:", ""]
        lines += [f"* {each}" for each in unsettled]
    return "\n".join(lines) + "\n"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all where none is named")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS + COMPILED)
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS)
    parser.add_argument("--rounds", type=int, default=FEWEST)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--show", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    if unknown := set(asked.models) - set(MODELS):
        parser.error(f"no network of this benchmark: {', '.join(sorted(unknown))}")
    if asked.rounds < FEWEST:
        parser.error(f"medians of fewer than {FEWEST} rounds say little")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in () if asked.show else asked.models or MODELS:
        for precision in asked.precisions:
            key = f"{asked.device} {name} {precision}"
            found = measure(name, precision, asked.device, tuple(asked.depths), asked.rounds)
            if key in results:
                found["depths"] = results[key]["depths"] | found["depths"]
            results = keep(RESULTS, key, found)
            PAGE.write_text(page(results))
            print(key, {n: round(row["composed"]["ratio"], 3) for n, row in found["depths"].items()}, flush=True)
    if results:
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
