"""Which instance gets a request, by what each has to do and what a request would cost it."""

import collections
from collections.abc import Mapping, Sequence

from epdjax.serving.ledger import Ledger
from epdjax.serving.policies import ASSIGNMENTS, per_stage
from epdjax.serving.request import Request


class Assigner:
    """See the module.

    Args:
        setting: of `policies.ASSIGNMENTS`, for all stages or for each.
        instances: all ledgers.
    """

    def __init__(self, setting: str, instances: Mapping[str, Ledger]):
        chosen = per_stage(setting, tuple(ASSIGNMENTS), "assignment")
        self._policies = {role: ASSIGNMENTS[name]() for role, name in chosen.items()}
        self._instances = instances

    def with_role(self, role: str) -> list[Ledger]:
        """All instances that take new work of a role."""
        return [ledger for ledger in self._instances.values() if ledger.takes(role)]

    def choose(self, role: str, request: Request, ledgers: Sequence[Ledger]) -> Ledger:
        """One of several instances for a stage of a request; one where it has failed only if there is no other."""
        ledgers = [ledger for ledger in ledgers if ledger.name not in request.avoid] or ledgers
        name = self._policies[role].choose(
            [ledger.name for ledger in ledgers],
            lambda name: self._instances[name].backlog_s(role),
            lambda name: self._prefill_cost_s(request, self._instances[name]) if role == "P" else 0.0,
        )
        return self._instances[name]

    def _prefill_cost_s(self, request: Request, ledger: Ledger) -> float:
        """Seconds of work for the first token of a request on a P instance: prefill of what is not cached there, and
        encoding of what is neither there nor on its way."""
        tokens = request.context - ledger.found_blocks(request) * ledger.block_size
        new = collections.Counter(
            bucket for key, (_, bucket) in request.spec.contents.items() if not ledger.has_mm(key)
        )
        encoders = self.with_role("E")
        encode = sum(
            count * min((e.times.encode_s(bucket) for e in encoders), default=0.0) for bucket, count in new.items()
        )
        return ledger.times.prompt_s(tokens) + encode
