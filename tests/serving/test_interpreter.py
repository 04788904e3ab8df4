"""Memory that is given back after large work, on no thread that serves."""

import ctypes
import threading
import time

import pytest

from epdjax.serving.interpreter import FreedMemory
from tests.serving.deployments import eventually


class FakeLibrary:
    """In place of the C library: notes who trims."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def malloc_trim(self, pad: int) -> int:
        self.threads.append(threading.current_thread().name)
        return 1


def test_after_large_work_only_and_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(FreedMemory, "PERIOD_S", 0.05)
    freed = FreedMemory()
    freed.give_back_after(FreedMemory.LARGE_BYTES - 1)
    for _ in range(100):
        freed.give_back_after(FreedMemory.LARGE_BYTES)
    eventually(lambda: library.threads == ["epdjax-trim"])
    eventually(lambda: not freed._one_at_a_time.locked())
    freed.give_back_after(FreedMemory.LARGE_BYTES)
    eventually(lambda: len(library.threads) == 2)


def test_where_the_c_library_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(FreedMemory, "PERIOD_S", 0.0)
    freed = FreedMemory()
    freed.give_back_after(1 << 30)
    time.sleep(0.01)
    eventually(lambda: not freed._one_at_a_time.locked())
