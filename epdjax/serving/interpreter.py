"""What a process that serves asks of Python."""

import gc
import sys

SWITCH_S = 0.0005
"""After which a thread lets another one run Python. By default that is 5 ms: several decode steps of a small model, all
of which would wait while a prompt is made ready."""


def settle() -> None:
    """Once everything is built: take it out of the garbage collector's view, and let no thread wait long for another.

    Start-up makes 740,000 objects of JAX, transformers and compiled programs; a collection of all of them stops every
    thread, for as long as 2 s on two busy CPU cores.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)
