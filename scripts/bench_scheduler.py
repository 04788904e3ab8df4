"""What an event costs the scheduler while many requests wait: ``python scripts/bench_scheduler.py``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-scheduler"))
