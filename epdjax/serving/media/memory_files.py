"""Memory that two processes share without a name: it is freed when the last of them has let go, however that ended."""

import contextlib
import fcntl
import mmap
import os
import tempfile

import numpy as np


def anonymous_file(size: int) -> int:
    """A file descriptor of `size` zero bytes of memory (of an unlinked file where the system has no such memory)."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("epdjax-media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def file_of(*pieces: bytes | memoryview) -> int:
    """A descriptor of a memory file that holds pieces of data, one behind the other."""
    descriptor = anonymous_file(sum(map(len, pieces)))
    try:
        written = 0
        for piece in pieces:
            rest = memoryview(piece)
            while len(rest):
                count = os.pwrite(descriptor, rest, written)
                written, rest = written + count, rest[count:]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def file_of_array(array: np.ndarray) -> int:
    """A descriptor of a memory file that holds an array, in C order."""
    descriptor = anonymous_file(array.nbytes)
    try:
        if array.nbytes:
            with mmap.mmap(descriptor, array.nbytes) as memory:
                np.copyto(np.ndarray(array.shape, array.dtype, memory), array)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def contents(descriptor: int, size: int) -> bytes:
    """The first `size` bytes of a file."""
    data = bytearray()
    while len(data) < size and (piece := os.pread(descriptor, size - len(data), len(data))):
        data += piece
    return bytes(data)


def mapped_array(descriptor: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array over a memory file that another process has made; the descriptor may be closed afterwards.

    Raises:
        ValueError: the file is shorter than the array.
    """
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if hasattr(fcntl, "F_ADD_SEALS"):
        # Reading beyond the end of a file that was cut short ends the process: from now on nobody can cut it.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    if os.fstat(descriptor).st_size < nbytes:
        raise ValueError("the memory is smaller than what it should hold")
    if nbytes == 0:
        return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, mmap.mmap(descriptor, nbytes))
