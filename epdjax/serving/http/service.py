"""What all requests of one server share."""

import dataclasses
import time

from epdjax.serving.fair_threads import FairThreads
from epdjax.serving.http.engine import Engine
from epdjax.serving.http.gate import Gate
from epdjax.serving.interpreter import FreedMemory

PARSERS = 3


@dataclasses.dataclass
class Service:
    """The engine, who is being served, the threads that parse large bodies, and what these leave behind."""

    llm: Engine
    gate: Gate
    parsers: FairThreads
    freed: FreedMemory
    created: int
    closed: bool = False

    @classmethod
    def of(cls, llm: Engine) -> "Service":
        """A service around an engine."""
        parsers = FairThreads("epdjax-json", PARSERS, llm.limits.max_active_requests, "requests wait to be parsed")
        return cls(llm, Gate(llm.limits), parsers, FreedMemory(), int(time.time()))

    async def close(self, timeout_s: float) -> bool:
        """Lets what is running finish, then ends the engine; whether everything finished in time.

        Only the first call acts. A request that is still running after the timeout gets an error instead of the rest
        of its answer.
        """
        if self.closed:
            return True
        self.closed = True
        self.gate.close()
        deadline = time.monotonic() + timeout_s
        finished = await self.gate.wait_idle(timeout_s)
        await self.llm.shutdown(drain=finished, timeout_s=max(1.0, deadline - time.monotonic()))
        if not finished:
            # Long enough for the errors to be sent.
            await self.gate.wait_idle(1.0)
        self.parsers.close()
        return finished
