"""The list of commands, in the order of the help page."""

from __future__ import annotations

import click

from .building import build, compress, export, plan, train
from .edge import CONTEXT, Edge
from .looking import doctor, exporters, inspect, models, targets
from .proving import bench, compare, verify


@click.group(cls=Edge, context_settings=CONTEXT)
@click.version_option(package_name="lorita-deploy", message="%(package)s %(version)s")
def cli() -> None:
    """Make low-rank networks fast on a named device, and prove it.

    \b
    Example:
      lorita-deploy build --model vgg16 --target cpu
      lorita-deploy build --model torchvision:resnet18 --checkpoint w.safetensors --no-train --calibration images/

    \b
    Exit codes: 0 done, 1 budget missed or regression, 2 bad input, 3 environment differs, 4 verification failed,
    5 device unreachable, 6 out of disk or memory, 130/143 interrupted.
    """


for command in (build, train, plan, compress, export, verify, bench, compare, inspect, doctor, models, targets, exporters):
    cli.add_command(command)
