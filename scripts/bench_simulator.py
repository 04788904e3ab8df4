"""Compare the simulator with the live engine: ``python scripts/bench_simulator.py --mesh 1E1P1D``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-simulator"))
