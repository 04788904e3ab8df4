"""Measure the caches: ``python scripts/bench_cache.py --mesh 1E1P1D``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-cache"))
