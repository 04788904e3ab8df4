"""The pace of answers beside long prompts: ``python scripts/bench_pace.py --prompt 8192``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("bench-pace"))
