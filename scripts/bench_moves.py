"""Measure KV moves: ``python scripts/bench_moves.py --mesh 1E1P1D``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-moves"))
