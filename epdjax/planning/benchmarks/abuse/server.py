"""The server that is abused, in a process of its own: as ``serve`` starts it, but for decoders that can be told to be
slow (see `decoder`)."""

import argparse
import logging
import sys

from epdjax.planning.benchmarks.abuse.asking import MODEL_NAME, READY
from epdjax.serving.http import bind, create_app, serve
from epdjax.serving.interpreter import settle
from epdjax.serving.llm import AsyncLLM
from epdjax.serving.media.decoder_pool import DecoderPool

SLOW_DECODER = ("-m", "epdjax.planning.benchmarks.abuse.decoder")
ADMIN_KEY = "a key that no client has"


def main() -> int:
    """Serves until it is told to stop; says on which port."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("mesh")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    llm = AsyncLLM(arguments.model, arguments.mesh, served_model_name=MODEL_NAME, max_model_len=2048)
    preparer = llm._preparer
    preparer.decoders.close()
    preparer.decoders = DecoderPool(llm.limits, llm.config.preprocess_threads, SLOW_DECODER)
    preparer.start()
    settle()
    return serve(
        create_app(llm, admin_key=ADMIN_KEY),
        bind("127.0.0.1", 0),
        drain_timeout_s=10.0,
        on_ready=lambda host, port: print(READY, port, flush=True),
    )


if __name__ == "__main__":
    raise SystemExit(main())
