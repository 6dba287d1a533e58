"""The options of a build, drawn from `BuildOptions`: types and defaults live there, the words for the help page here."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from ..pipeline.options import BUDGETS, BuildOptions, make_options, read_config
from .completion import OF_OPTIONS

SECTIONS: dict[str, dict[str, str]] = {
    "Network and target": {
        "model": "Name of a model (see: models list), torchvision:NAME, timm:NAME or package.module:function.",
        "target": "Device or board@profile (see: targets list), or a TOML file of your own.",
        "out": "Build folder  [default: build/<model>-<target>]",
        "checkpoint": "Weights to start from, factored in balance: safetensors, or a .pt file that holds tensors only.",
        "checkpoint_format": "lorita: a checkpoint of the published LoRITa code (ResNets), collapsed exactly.",
        "sample": "Take the trained network that ships with the model instead of training one.",
        "input_size": "Height and width of the network's input  [default: the model's own; 64 where one of a family, such as "
        "torchvision's, is trained here]",
        "classes": "Number of classes  [default: as many as the data has]",
    },
    "Data": {
        "data": "digits, mnist, fashion-mnist, cifar10, cifar100 or folder:PATH  [default: digits]",
        "data_root": "Where the files of mnist, cifar10, ... lie.",
        "calibration": "Folder of unlabelled images to calibrate on.",
        "calibration_samples": "How many images to calibrate on.",
    },
    "Training": {
        "train": "Train, or take the weights as they are.",
        "recipe": "One of the model's recipes (see: models show), or a TOML file  [default: the model's first]",
        "teacher": "Weights of the same network, whose answers are learnt beside the labels.",
        "depth": "N of LoRITa: every weight is trained as a product of so many factors  [default: the recipe's]",
        "epochs": "[default: the recipe's]",
        "batch_size": "[default: the recipe's]",
        "lr": "Learning rate  [default: the recipe's]",
        "weight_decay": "What makes weights low-rank; 0 switches the method off  [default: the recipe's]",
        "accumulate": "Cut each batch into so many parts, which takes less memory  [default: the recipe's]",
        "narrow_gates": "K >= 2: gates on channels, which fade out under the weight decay  [default: the recipe's]",
        "per_head": "A product for each attention head, so that heads become narrower.",
        "compile": "Train through torch.compile, where there is a compiler.",
        "seed": "Of every random number; images are divided alike for all.",
        "torch_device": "Where torch computes: auto, cpu or cuda.",
    },
    "What to keep, what to gain": {
        "max_drop": "Points of validation accuracy that may be lost: 0.5 is one image in 200.",
        "max_latency": "Fit the target's time for one call, such as 2.5ms.",
        "speedup": "Times faster than the dense network.",
        "objective": "What is made small.",
        "narrow": "Offer layers with fewer channels, beside pairs.",
        "criterion": "How the loss of a cut is predicted; with paper, channels stay.",
        "plan": "Use this plan (a plan.json, perhaps edited) instead of searching one.",
        "device": "Where times are taken: local, or the board itself over SSH, ssh://user@host (see docs/devices.md).",
        "receipt": "Better the prices by what a board wrote for the bundle built before: receipt.json, or trtexec-DATE.tar.gz.",
        "layer_times": "Use this price table (a prices.json measured on the target).",
        "trust_times": "Take --layer-times even from another host or runtime version.",
        "local_search": "Rounds in which predicted losses are put right by undoing each change of the plan, and solved again.",
        "recover_epochs": "Epochs of distillation from the dense network after compressing; with --max-drop up to five "
        "plans that need it are tried.",
        "require_speedup": "Exit with code 1 unless the shipped network is measured to be so many times faster.",
    },
    "Artifact": {
        "precision": "auto: the fastest on the target that keeps --max-drop  [default: the target's]",
        "opset": "ONNX opset  [default: the target's]",
        "batch": "Examples in one call.",
        "dynamic_batch": "Accept any number of examples in one call.",
        "simplify": "Run onnxsim, and keep its result where outputs agree.",
        "rungs": "Networks of other sizes in the bundle, from which run.py --deadline chooses.",
        "threads": "Threads of the runtime while timing.",
    },
    "Running": {"fresh": "Start over: use nothing that an earlier build finished."},
}
ALSO = {"model": "-m", "target": "-t", "out": "-o", "depth": "-N", "checkpoint": "--init-from"}
"""Other spellings."""
FAMILY = ("train", "plan", "compress", "export", "build")
"""Each runs the stages of the one before it, and some more."""
FIRST_READ = {
    **dict.fromkeys((*SECTIONS["What to keep, what to gain"], *SECTIONS["Artifact"]), "plan"),
    **dict.fromkeys(("rungs", "require_speedup"), "build"),
}
"""The first of the family in which an option does something; where it is not named, all of them."""


class BuildCommand(click.Command):
    """A command of the build family: its help page groups the options that it reads.

    Those that only a longer one reads are taken as well, so that one line or --config serves them all.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = {param.name: row for param in self.get_params(ctx) if (row := param.get_help_record(ctx))}
        for section, fields in SECTIONS.items():
            of_section = {name: rows.pop(name) for name in fields}
            if read := [row for name, row in of_section.items() if self.reads(name)]:
                with formatter.section(section):
                    formatter.write_dl(read)
        with formatter.section("Other options"):
            formatter.write_dl(list(rows.values()))
        if not all(map(self.reads, FIRST_READ)):
            formatter.write_paragraph()
            formatter.write_text("The other options of build are taken too, and do nothing yet.")

    def reads(self, option: str) -> bool:
        return FAMILY.index(FIRST_READ.get(option, FAMILY[0])) <= FAMILY.index(self.name or FAMILY[-1])


def with_build_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add every field of `BuildOptions`, and --config. The command gets them all as ``given``; see `chosen`."""
    for fields in reversed(SECTIONS.values()):
        for name, words in reversed(fields.items()):
            command = _option(name, words)(command)
    path = click.Path(dir_okay=False, path_type=Path)
    return click.option("--config", type=path, help="TOML file holding any of these options; the command line wins.")(command)


def chosen(given: dict[str, Any], config: Path | None) -> BuildOptions:
    """What was asked for: the file's options, overridden by those of the command line. Raises `LoritaDeployError`."""
    options = read_config(config) if config else {}
    on_the_line = {name: value for name, value in given.items() if value is not None}
    if on_the_line.keys() & set(BUDGETS):
        options = {name: value for name, value in options.items() if name not in BUDGETS}  # one budget replaces another
    options |= on_the_line
    if "model" not in options:
        raise click.UsageError("Missing option '--model' (see: lorita-deploy models list).")
    return make_options(**options)


def _option(name: str, words: str) -> Callable[..., Any]:
    field = BuildOptions.model_fields[name]
    kind = _plain_type(field.annotation)
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        flag = f"{flag}/--no-{name.replace('_', '-')}" if field.default else flag
        words = f"{words}  [default: yes]" if field.default else words
        return click.option(flag, name, is_flag=True, default=None, help=words)
    if not field.is_required() and field.default is not None:
        words = f"{words}  [default: {field.default}]"
    choices = click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind
    metavar = None if get_origin(kind) is Literal else {str: "TEXT", int: "N", float: "X"}[kind]
    spelled = filter(None, (ALSO.get(name), flag))
    complete = OF_OPTIONS.get(name)
    return click.option(*spelled, name, type=choices, metavar=metavar, default=None, help=words, shell_complete=complete)


def _plain_type(annotation: Any) -> Any:
    """``T`` of ``T | None``."""
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation
