"""Several processes for one training, as ``torchrun`` and ``accelerate launch`` start them.

The first owns the build folder and does all of a build. The others wait for it, take part in its training where there is one,
and end with that: they write nothing and say nothing.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(hours=12)
"""How long the others wait for the first one, whose data may be long in the reading. Where it fails, the launcher ends them."""


def several() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Whether this is one of several, and not the first."""
    return several() and int(os.environ.get("RANK", "0")) > 0


def accelerator_for(device: str) -> Accelerator:
    """``device`` as in `train`. Several processes meet here for the first time."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    on_cpu = several() and (device == "cpu" or not torch.cuda.is_available())  # otherwise taken for one process each
    handlers = [InitProcessGroupKwargs(timeout=PATIENCE)]
    # Precision is the recipe's, whatever the launcher was configured to.
    return Accelerator(device_placement=False, cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)


def agreed(trains: bool, device: str) -> bool:
    """What the first process says, in all of them: whether it is about to train. Each must ask once."""
    if not several():
        return trains
    from accelerate.utils import broadcast_object_list

    accelerator_for(device)
    said: list[bool] = broadcast_object_list([trains])
    return said[0]


def leave() -> None:
    """Out of the company of the other processes, in order."""
    from accelerate import PartialState

    if several() and PartialState._shared_state:
        PartialState().destroy_process_group()
