"""A decoder process that does as it is told, in place of files that are slow or that crash a codec.

The data of a "file" are a few words: `sleep 3`, `crash`, `bug`, `refuse`, `reserve 1000`, `memory`, `lie`, `modules` or
`ok`.
"""

import os
import sys
import time
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.media import Audio
from epdjax.serving.errors import MediaError
from epdjax.serving.media import decoder_process


def decode(job: decoder_process.Job) -> Any:
    words = bytes(job.source).decode().split()  # type: ignore[arg-type]
    match words[0]:
        case "sleep":
            time.sleep(float(words[1]))
        case "crash":
            os._exit(7)
        case "bug":
            raise KeyError("secret")
        case "refuse":
            raise MediaError("this is no picture; send another")
        case "reserve":
            job.reserve(int(words[1]))
        case "memory":
            bytearray(decoder_process.ADDRESS_SPACE)
        case "lie":
            return Audio(np.zeros(5, np.float32), 16000)
        case "modules":
            names = " ".join(sorted({"jax", "flax", "transformers", "torch"} & set(sys.modules)))
            return Image.new("RGB", (1 + len(names), 1))
    return Image.new("RGB", (3, 2), (1, 2, 3))


if __name__ == "__main__":
    decoder_process.main(decode)
