"""The EPD paper's tables and figures: ``python scripts/reproduce.py table1 figure5``, or ``all``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("reproduce"))
