"""Networks that nobody registered: ``--model package.module:function``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from .errors import BadNetwork
from .ports import ModelSpec
from .records import Recipe


def spec_of_function(module_name: str, function_name: str) -> ModelSpec:
    """``package.module:function``: a function that takes no argument, or (classes, input_size), and gives a module.

    Raises `BadNetwork`.
    """
    where = f"{module_name}:{function_name}"
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # a script's first folder is its own, not the one that it is called from
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # TypeError: begins with a dot, as paths do
        raise BadNetwork(
            f"{where} cannot be imported: {error}",
            where=module_name,
            fix="write module:function, not a path; a file of yours is found from its own folder, or once its package is "
            "installed",
        ) from error
    if isinstance(function, ModelSpec):
        return function
    if not callable(function):
        raise BadNetwork(f"{where} is a {type(function).__name__}, not a function", where=module_name)
    return ModelSpec(
        name=where,
        summary=(inspect.getdoc(function) or "a network of yours").splitlines()[0],
        build=function if _takes_sizes(function, where) else lambda classes, input_size: function(),
        recipe=Recipe(epochs=20, batch_size=64, lr=0.05, weight_decay=1e-3),
    )


def _takes_sizes(function: Callable[..., Any], where: str) -> bool:
    """Whether it is called with (classes, input_size): it has two parameters to fill, or two of these names. Raises
    `BadNetwork`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:  # of builtins
        raise BadNetwork(f"{where} does not tell what it takes: {error}", where=where) from error
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [each for each in parameters if each.kind in kinds]
    to_fill = [each.name for each in positional if each.default is each.empty]
    if len(to_fill) == 2 or ([each.name for each in positional[:2]] == ["classes", "input_size"] and len(to_fill) < 2):
        return True
    if to_fill:
        fix = "write a function of your own that takes none, or (classes, input_size)"
        raise BadNetwork(f"{where} wants to be given {', '.join(to_fill)}", where=where, fix=fix)
    return False
