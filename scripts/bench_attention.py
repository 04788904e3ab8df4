"""How fast attention kernels are on this device: ``python scripts/bench_attention.py prefill decode``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-attention"))
