"""A decoder process that never comes to an end with some data: in place of files that decode slowly."""

import base64
import time
from typing import Any

from epdjax.serving.media import decoder_process

SLOW_BYTES = b"abuse-test: slow"
"""Data that begin so take a processor until the deadline, instead of being decoded."""


def decode(job: decoder_process.Job) -> Any:
    """As `decoder_process.decode`, but for the data that are told to be slow."""
    if SLOW_BYTES in _beginning(job.source):
        while True:
            time.perf_counter()
    return decoder_process.decode(job)


def _beginning(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:64]
    return base64.b64decode(source.partition(",")[2][:64])


if __name__ == "__main__":
    decoder_process.main(decode)
