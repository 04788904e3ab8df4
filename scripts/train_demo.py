"""Train the bundled demo model from nothing: ``python scripts/train_demo.py --run runs/demo``; again to go on."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("train-demo"))
