"""Load-test engines: ``python scripts/load_test.py --mesh 1EPD 2E1P2D --rate 4``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("load-test"))
