"""Objects in processes of their own."""

import os
from pathlib import Path

import pytest

from epdjax.planning.benchmarks.elsewhere import elsewhere


class Counter:
    """Counts from `start`, and writes down where it ended."""

    def __init__(self, start: int, told: Path):
        if start < 0:
            raise ValueError(f"cannot start at {start}")
        self.count, self.told = start, told

    def add(self, more: int) -> tuple[int, int]:
        if not more:
            raise ValueError("nothing to add")
        self.count += more
        return self.count, os.getpid()

    def close(self) -> None:
        self.told.write_text(str(self.count))


def test_it_keeps_its_state_there(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with elsewhere(Counter, 5, told) as call:
        (six, here), (nine, again) = call("add", 1), call("add", 3)
        assert (six, nine) == (6, 9) and here == again != os.getpid()
        with pytest.raises(ValueError, match="nothing to add"):
            call("add", 0)
        assert not told.exists()
    assert told.read_text() == "9"


def test_what_cannot_be_made_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot start at -1"), elsewhere(Counter, -1, tmp_path / "told"):
        pass
