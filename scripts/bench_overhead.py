"""What the engine costs beside the compiled steps: ``python scripts/bench_overhead.py --batch 1 16 64``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-overhead"))
