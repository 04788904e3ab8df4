"""Ask the demo model held-out questions through the engine: ``python scripts/eval_demo.py --mesh 1EPD 2E1P1D``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("eval-demo"))
