#!/usr/bin/env python3
"""Classify an image file:  python3 infer.py IMAGE  (needs numpy, pillow and onnxruntime; valid Python 3.6)."""

import json
import os
import sys

from typing import Any, Dict

import numpy

HERE = os.path.dirname(os.path.abspath(__file__))


def artifact_path(manifest: Dict[str, Any]) -> str:
    """The network that run.py found to be the faster one on this machine; before it has run, the first one."""
    faster = None
    if os.path.exists(os.path.join(HERE, "receipt.json")):
        with open(os.path.join(HERE, "receipt.json"), encoding="utf-8") as file:
            faster = json.load(file).get("faster")
    paths = {each["role"]: each["path"] for each in reversed(manifest["artifacts"])}
    return os.path.join(HERE, paths.get(faster, manifest["artifacts"][0]["path"]))


def read_image(path: str, how: Dict[str, Any]) -> Any:
    """The image as the network was trained to see it: float32 (1, channels, height, width)."""
    from PIL import Image, ImageOps

    channels, height, width = how["shape"]
    image = Image.open(path)  # type: Any
    image.draft("L" if channels == 1 else "RGB", (width, height))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), getattr(Image, "Resampling", Image).BILINEAR)
    pixels = numpy.asarray(image, dtype="float32").reshape(height, width, channels) / 255
    pixels = (pixels - numpy.float32(how["mean"])) / numpy.float32(how["std"])
    return numpy.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def main() -> int:
    with open(os.path.join(HERE, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    if len(sys.argv) != 2 or not manifest["preprocessing"]:
        print("usage: python3 infer.py IMAGE" if manifest["preprocessing"] else "this network does not take images")
        return 2
    import onnxruntime

    session = onnxruntime.InferenceSession(artifact_path(manifest), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    try:
        image = read_image(sys.argv[1], manifest["preprocessing"])
    except (OSError, ValueError) as error:
        print("this image cannot be read: %s" % error)
        return 2
    batch = given.shape[0] if isinstance(given.shape[0], int) else 1
    logits = session.run(None, {given.name: numpy.repeat(image, batch, 0)})[0][0].astype("float64")
    shares = numpy.exp(logits - logits.max())
    shares /= shares.sum()
    for place in shares.argsort()[::-1][:5]:
        name = manifest["classes"][place] if place < len(manifest["classes"]) else "class %d" % place
        print("%6.2f %%  %s" % (100 * shares[place], name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
