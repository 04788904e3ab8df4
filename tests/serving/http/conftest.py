"""A server with the real engine and a tiny model, shared by the tests of the whole path."""

from collections.abc import Iterator

import pytest

from epdjax.serving.buckets import Buckets
from epdjax.serving.limits import ServingLimits
from epdjax.serving.llm import AsyncLLM
from tests.models.tiny import make_tiny_checkpoint
from tests.serving.http.servers import RunningServer, running

CONTEXT = 512
# One shape per step: the tests are about requests, and every shape takes seconds to compile.
BUCKETS = Buckets(
    units=(4,), prefill=((1, 128),), prefill_pages=(32,), decode_rows=(8,), decode_pages=(32,), move_blocks=(32,)
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = make_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    limits = ServingLimits(max_images_per_request=3, max_image_pixels=4_000_000, max_body_bytes=2**21)
    llm = AsyncLLM(
        model, "1E1P1D", max_model_len=CONTEXT, max_seqs=8, max_units=4, max_chunk=128, buckets=BUCKETS, limits=limits
    )
    with running(llm) as server:
        yield server
