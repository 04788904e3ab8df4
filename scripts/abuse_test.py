"""Abuse a server beside good requests: ``python scripts/abuse_test.py --case long-text``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("abuse-test"))
