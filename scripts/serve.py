"""Serve a model over HTTP: ``python scripts/serve.py --mesh 2E1P1D --model DIR``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("serve"))
