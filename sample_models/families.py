"""Classifiers of torchvision and timm by name: ``torchvision:resnet18``, ``timm:convnext_tiny``.

Built without pretrained weights (``--checkpoint`` brings one's own), at the input size the network was published for.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lorita_deploy.errors import BadNetwork, UnknownName
from lorita_deploy.ports import ModelSpec

from .shipped import DEFAULT, recipes

RECIPES = recipes("families")
"""A start for networks that nobody wrote a recipe for."""


def torchvision(name: str) -> ModelSpec:
    """The torchvision classifier called ``name``. Raises `UnknownName`."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UnknownName(
            "torchvision classifier",
            name,
            known,
            fix="list them: python -c 'import torchvision.models as m; print(*m.list_models(module=m))'",
        )
    weights = next(iter(models.get_model_weights(name)), None)  # a description; nothing is downloaded
    size = weights.transforms().crop_size[0] if weights is not None else 224

    def build(classes: int, input_size: int) -> nn.Module:
        options: dict[str, Any] = {"image_size": input_size} if name.startswith("vit_") else {}
        if name.startswith("maxvit_"):
            options |= {"input_size": (input_size, input_size)}
        if name in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": True}
        return models.get_model(name, weights=None, num_classes=classes, **options)

    return ModelSpec(
        name=f"torchvision:{name}",
        summary=f"torchvision's {name}",
        build=build,
        recipe=RECIPES[DEFAULT],
        recipes=RECIPES,
        input_size=size,
        classes=1000,
    )


def timm(name: str) -> ModelSpec:
    """The timm classifier called ``name``, e.g. ``resnet18`` or ``resnet18.a1_in1k``. Raises `UnknownName`, `BadNetwork`."""
    try:
        import timm as library
    except ImportError as error:
        raise BadNetwork("timm is not installed", where=f"timm:{name}", fix='pip install "lorita-deploy[timm]"') from error
    try:
        config = library.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # of the architecture, or of the training tag behind the dot
        known = library.list_pretrained(f"{name.partition('.')[0]}.*") or library.list_models()
        raise UnknownName(
            "timm classifier", name, known, fix="list them: python -c 'import timm; print(*timm.list_models())'"
        ) from error
    channels, size, width = config.input_size

    def build(classes: int, input_size: int) -> nn.Module:
        as_published = (input_size, input_size) == (size, width)
        options = {"img_size": input_size} if config.fixed_input_size and not as_published else {}
        return library.create_model(name, pretrained=False, num_classes=classes, **options)

    return ModelSpec(
        name=f"timm:{name}",
        summary=f"timm's {name}",
        build=build,
        recipe=RECIPES[DEFAULT],
        recipes=RECIPES,
        channels=channels,
        input_size=size,
        classes=config.num_classes,
    )
