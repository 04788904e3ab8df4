"""How long engines take to start: ``python scripts/bench_startup.py --mesh 1EPD 2E1P1D``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-startup"))
