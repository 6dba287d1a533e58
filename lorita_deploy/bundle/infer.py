#!/usr/bin/env python3
"""Classify an image file:  python3 infer.py IMAGE  (needs numpy, pillow and what run.py ran with; valid Python 3.6)."""

import argparse
import sys

from typing import Any

import run


def read_image(path: str, how: Any) -> Any:
    """The image as the network was trained to see it: float32 (1, channels, height, width)."""
    import numpy

    from PIL import Image, ImageOps

    channels, height, width = how["shape"]
    mode = "L" if channels == 1 else "RGB"
    image: Any = Image.open(path)
    image.draft(mode, (width, height))
    if image.mode.startswith("I;16"):  # of 16 bits, which PIL would cut off at 255
        image = Image.fromarray(numpy.rint(numpy.asarray(image) / 257).astype("uint8"))
    image = image.convert(mode)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), getattr(Image, "Resampling", Image).BILINEAR)
    pixels = numpy.asarray(image, dtype="float32").reshape(height, width, channels) / 255
    pixels = (pixels - numpy.float32(how["mean"])) / numpy.float32(how["std"])
    return numpy.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def main() -> int:
    parser = argparse.ArgumentParser(description="Classify an image file with the network to use here.")
    parser.add_argument("image")
    path = parser.parse_args().image
    job = run.read_bundle()  # every file is checked, before the first of them is imported
    from chosen import classify, decoding, open_network

    manifest, session = open_network(job)  # the network that run.py chose on this machine
    with decoding(path, manifest):
        image = read_image(path, manifest["preprocessing"])
    for share, label in classify(session, image, manifest["classes"])[:5]:
        print("%6.2f %%  %s" % (100 * share, label))
    return 0


if __name__ == "__main__":
    sys.exit(run.tell(main))
