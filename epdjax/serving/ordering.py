"""The orders of all stages: a place in each for every request, and telling each what its stage begins with."""

from collections.abc import Mapping

from epdjax.serving.policies import ORDERS, per_stage, rank
from epdjax.serving.request import Rank, Request, RequestSpec
from epdjax.serving.work import Decode, Encode, Prefill, Work, request_ids

ROLES: dict[type, str] = {Encode: "E", Prefill: "P", Decode: "D"}


class Ordering:
    """See the module.

    Args:
        setting: of `policies.ORDERS`, for all stages or for each.
        requests: all live requests.
    """

    def __init__(self, setting: str, requests: Mapping[str, Request]):
        chosen = per_stage(setting, tuple(ORDERS), "order")
        self.decodes_fairly = chosen["D"] == "fair"
        self._orders = {role: ORDERS[name]() for role, name in chosen.items()}
        self._requests = requests

    def ranks(self, spec: RequestSpec, arrived: float, number: int) -> dict[str, Rank]:
        """The places of a request that arrives, by role; `number` breaks ties."""
        return {role: rank(order, spec, role, arrived, number) for role, order in self._orders.items()}

    def began(self, work: Work) -> None:
        """A stage begins with some requests."""
        role = ROLES.get(type(work))
        if role is None:
            return
        names = (unit.request_id for unit in work.units) if isinstance(work, Encode) else request_ids(work)
        for name in names:
            request = self._requests[name]
            if role not in request.begun:
                request.begun += role
                self._orders[role].started(request.ranks[role][0])
