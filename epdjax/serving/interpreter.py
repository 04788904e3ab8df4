"""What a process that serves asks of Python, and of the C library below it."""

import contextlib
import ctypes
import gc
import sys
import threading
import time

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


class FreedMemory:
    """Gives freed memory back to the system, where the C library is glibc.

    Threads that prepare pictures have heaps of their own there, which keep what was freed: after a hundred pictures of
    27 MB, 180 MB.
    """

    PERIOD_S = 1.0
    LARGE_BYTES = 16 << 20

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()

    def give_back_after(self, size: int) -> None:
        """Do so after work that took `size` bytes, if that is much, once a second at most. Returns at once: it takes
        tens of milliseconds, on a thread of its own."""
        if size >= self.LARGE_BYTES and self._one_at_a_time.acquire(blocking=False):
            threading.Thread(target=self._give_back, name="epdjax-trim", daemon=True).start()

    def _give_back(self) -> None:
        try:
            # Whoever is at the end of the work still holds some of it; and another may follow at once.
            time.sleep(self.PERIOD_S)
            with contextlib.suppress(AttributeError, OSError):
                ctypes.CDLL(None).malloc_trim(0)
        finally:
            self._one_at_a_time.release()
