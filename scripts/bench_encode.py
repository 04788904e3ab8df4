"""How fast encoders are on this device: ``python scripts/bench_encode.py SigLIP-400M``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-encode"))
