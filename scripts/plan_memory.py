"""What fits into a chip that need not be here: ``python scripts/plan_memory.py InternVL2-8B --mesh 5E2P1D``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("plan-memory"))
