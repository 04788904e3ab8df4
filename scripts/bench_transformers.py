"""This engine beside transformers: ``python scripts/bench_transformers.py --requests 32``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-transformers"))
