"""Which deployment serves a workload best: ``python scripts/plan.py MiniCPM-V-2.6 --workload pictures-4``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("plan"))
