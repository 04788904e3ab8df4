"""Cost models: what work takes on an instance, in seconds.

Three of them, all callable as the simulator's `Seconds`: `ProfiledCosts` from a profile of the real steps on a chip,
`Roofline` from counted operations and bytes where there is no profile, `ConstantCosts` from published points.
"""

from epdjax.planning.costs.constants import ConstantCosts
from epdjax.planning.costs.host import HostCosts
from epdjax.planning.costs.links import Links
from epdjax.planning.costs.profile import Profile
from epdjax.planning.costs.profiled import ProfiledCosts
from epdjax.planning.costs.roofline import Efficiency, Roofline
from epdjax.planning.costs.timing import Profiler

__all__ = [
    "ConstantCosts",
    "Efficiency",
    "HostCosts",
    "Links",
    "Profile",
    "ProfiledCosts",
    "Profiler",
    "Roofline",
]
