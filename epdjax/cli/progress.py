"""Progress of compiling, on the terminal or as plain lines where there is none."""

import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_EVERY_S = 5.0


class CompileProgress:
    """A `serving.programs.Progress` that shows itself; use it as a context."""

    def __init__(self) -> None:
        columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, TextColumn("{task.description}"))
        self._task = self._bar.add_task("", total=None)
        self._terminal = sys.stderr.isatty()
        self._told = time.monotonic()

    def __enter__(self) -> "CompileProgress":
        if self._terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, label: str) -> None:
        self._bar.update(self._task, completed=done, total=total, description=label)
        if not self._terminal and (done == total or time.monotonic() - self._told > PLAIN_EVERY_S):
            self._told = time.monotonic()
            print(f"compiled {done} of {total} programs", file=sys.stderr, flush=True)
