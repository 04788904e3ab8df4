"""What published models take of a chip that is not here: ``python scripts/memory_table.py InternVL2-26B``."""

import sys

from epdjax.cli import script

if __name__ == "__main__":
    sys.exit(script("memory-table"))
