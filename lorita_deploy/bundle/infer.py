#!/usr/bin/env python3
"""Classify an image file:  python3 infer.py IMAGE  (needs numpy, pillow and what run.py ran with; valid Python 3.6)."""

import json
import os
import sys

from typing import Any, Dict, Tuple

import numpy
import prepare
import run

from job import Json, JobError, read_job

HERE = os.path.dirname(os.path.abspath(__file__))


def choose(job: Json) -> Tuple[Json, Json]:
    """The artifact that run.py told to use on this machine and the settings it ran with; before it has run, the first one."""
    by_name = {each["name"]: each for each in job["artifacts"]}
    receipt: Dict[str, Any] = {}
    if os.path.exists(os.path.join(HERE, "receipt.json")):
        with open(os.path.join(HERE, "receipt.json"), encoding="utf-8") as file:
            receipt = json.load(file)
    name = (receipt.get("deadline") or {}).get("chosen") or receipt.get("faster")
    artifact = by_name.get(name, job["artifacts"][0])
    engines = [each.get("engine") for each in receipt.get("series", ()) if each["name"] == artifact["name"]]
    artifact["exact"] = bool(engines and engines[0] and engines[0]["exact"])
    return artifact, receipt.get("settings", job["settings"])


def read_image(path: str, how: Json) -> Any:
    """The image as the network was trained to see it: float32 (1, channels, height, width)."""
    from PIL import Image, ImageOps

    channels, height, width = how["shape"]
    image: Any = Image.open(path)
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
    try:
        image = read_image(sys.argv[1], manifest["preprocessing"])
    except (OSError, ValueError) as error:
        print("this image cannot be read: %s" % error)
        return 2
    try:
        job = read_job(os.path.join(HERE, "manifest.json"))
        artifact, job["settings"] = choose(job)
        runtime, _ = run.start_runtime(job, settle=True)
        session = prepare.load(job, runtime, artifact)
    except JobError as problem:
        print(problem)
        return int(problem.code)
    name, dtype, shape = session.inputs[0]
    batch = shape[0] if isinstance(shape[0], int) else 1
    logits = session.run({name: numpy.repeat(image, batch, 0).astype(dtype)})[0][0].astype("float64")
    shares = numpy.exp(logits - logits.max())
    shares /= shares.sum()
    for place in shares.argsort()[::-1][:5]:
        label = manifest["classes"][place] if place < len(manifest["classes"]) else "class %d" % place
        print("%6.2f %%  %s" % (100 * shares[place], label))
    return 0


if __name__ == "__main__":
    sys.exit(main())
