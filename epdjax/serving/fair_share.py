"""The order ``fair``: one client's many requests do not push back the next one of another.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), one request being one unit of service. Virtual time is
that of the request that was started last. A request's own is virtual time when it arrives, or the end of its client's
last request if that is later, and a client's end moves on by `TURN_S` with each request. So whatever a client has
submitted, of any stretch of `TURN_S` only so much is his, and the next request of another comes before the rest. A
single client's requests are in the order in which they come.

A client's requests are shared out among his users in the same way: each has a lane of his own, and what a request puts
its lane back by grows with the lanes that are in use, so all of them together get what one alone would.
"""

from epdjax.serving.ranked import Ranked
from epdjax.serving.request import RequestSpec

TURN_S = 0.1
"""What a request puts its client's next one back by. Virtual time has no other measure; a step of priority, 30
seconds, is worth 300 requests of one client."""
MOST_CLIENTS = 1024
"""Remembered at a time; those beyond share one turn. Virtual time also grows by a turn with so many starts, so that
clients who are always new cannot hold back one who is not."""
MOST_LANES = 8  # of a client; the users beyond share them


class FairShare:
    """See the module. One object for each stage; it is told what the stage starts."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lanes: dict[str, dict[str, float]] = {}  # of each client: user -> end of his last request
        self._ends: Ranked[str] = Ranked()  # (end of a client's last request, client) -> client

    @property
    def clients(self) -> int:
        """Clients that are remembered."""
        return len(self._lanes)

    def virtual_time(self, spec: RequestSpec, role: str, arrived: float) -> float:
        """The start of a request that arrives now, in the order of those of all clients."""
        self._forget()
        client = spec.client if spec.client in self._lanes or self.clients < MOST_CLIENTS else ""
        lanes = self._lanes.get(client, {})
        if lanes:
            self._ends.pop((max(lanes.values()), client))
        lanes = {user: end for user, end in lanes.items() if end > self._now}  # the others begin anew
        user = spec.user
        if user not in lanes and len(lanes) >= MOST_LANES:
            user = min(lanes, key=lambda some: (lanes[some], some))
        start = max(self._now, lanes.get(user, self._now))
        lanes[user] = start
        lanes[user] += TURN_S * len(lanes)
        self._lanes[client] = lanes
        self._ends.add((max(lanes.values()), client), client)
        return start

    def started(self, virtual_time: float) -> None:
        """A request has been started, priority included in its time."""
        self._now = max(self._now + TURN_S / MOST_CLIENTS, virtual_time)

    def _forget(self) -> None:
        """Clients whose next request would begin now anyway need not be remembered."""
        while self._ends and self._ends.first_key[0] <= self._now:
            _, client = self._ends.first_key
            self._ends.pop(self._ends.first_key)
            del self._lanes[client]
