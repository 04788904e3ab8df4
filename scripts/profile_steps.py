"""What steps take on these devices: ``python scripts/profile_steps.py --model InternVL2-1B --mesh 1E1P1D``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("profile"))
