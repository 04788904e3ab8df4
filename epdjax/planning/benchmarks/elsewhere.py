"""An object in a process of its own, where nothing that others leave behind slows it down."""

import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

_made: list[Any] = []  # in the other process


@contextlib.contextmanager
def elsewhere(make: Callable[..., Any], *args: Any) -> Iterator[Callable[..., Any]]:
    """Make an object in a new process, and end it and the process afterwards.

    Args:
        make: of the object, which has a method ``close``. args: for it.

    Yields:
        What takes a method's name and arguments, calls it there, and returns or raises what it does.
    """
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(_make, make, args).result()
        try:
            yield lambda method, *args: process.submit(_call, method, args).result()
        finally:
            process.submit(_call, "close", ()).result()


def _make(make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    _made.append(make(*args))


def _call(method: str, args: tuple[Any, ...]) -> Any:
    return getattr(_made[0], method)(*args)
