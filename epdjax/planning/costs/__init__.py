"""Cost models: what work takes on an instance, in seconds.

All are callable as the simulator's `Seconds`: `Roofline` from counted operations and bytes, `ConstantCosts` from
published points.
"""

from epdjax.planning.costs.chips import CHIPS, Chip, chip
from epdjax.planning.costs.constants import ConstantCosts
from epdjax.planning.costs.host import HostCosts
from epdjax.planning.costs.links import Links
from epdjax.planning.costs.roofline import Efficiency, Roofline

__all__ = [
    "CHIPS",
    "Chip",
    "ConstantCosts",
    "Efficiency",
    "HostCosts",
    "Links",
    "Roofline",
    "chip",
]
