"""Role switching, by the clock, live, and what it takes: ``python scripts/bench_roles.py --times``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-roles"))
