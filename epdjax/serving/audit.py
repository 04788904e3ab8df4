"""Do the scheduler's books balance? Property tests ask after every step, the engine whenever it falls idle."""

import math
from collections.abc import Sized

from epdjax.serving.ledger import Ledger
from epdjax.serving.scheduler import Scheduler


def audit(scheduler: Scheduler) -> None:
    """Compare what every pool has handed out with what requests hold: no request, no blocks held.

    Raises:
        AssertionError: they differ, which is a bug; the message says where.
    """
    everyone = [*scheduler.requests.values(), *scheduler.leaving.values()]
    for name, ledger in scheduler.instances.items():
        for pool_name, pool in ledger.pools.items():
            held = [block for r in everyone for block in r.holdings.get((name, pool_name), ())]
            if pool_name == "staging":
                held = scheduler.encoding.staging.held_by(name)
            elif pool_name == "mm":
                own = ledger.arrivals.held()
                assert len(own) == ledger.arrivals.holds, f"{name}: arrivals hold {len(own)}, {ledger.arrivals.holds}"
                held += own
            assert len(held) == pool.users, f"{name} {pool_name}: {len(held)} holds, {pool.users} counted"
            assert len(set(held)) == pool.held, f"{name} {pool_name}: {len(set(held))} != {pool.held}"
            assert pool.held + pool.available == pool.capacity, f"{name} {pool_name}"
        _audit_queues(scheduler, ledger)
    pending = sum(r.spec.media_bytes for r in scheduler.requests.values())
    assert scheduler.queued.media_bytes == pending, f"media bytes: {scheduler.queued.media_bytes} != {pending}"
    expected = sum(r.to_follow for r in scheduler.requests.values())
    assert scheduler.queued.expected == expected, f"{scheduler.queued.expected} requests to follow, {expected} known"
    limited = sum(r.deadline < math.inf for r in scheduler.requests.values())
    assert scheduler.deadlines == limited, f"{scheduler.deadlines} deadlines, {limited} requests with one"
    if scheduler.idle:
        queues: tuple[Sized, ...] = (
            scheduler.entry.waiting,
            scheduler.moves.queue,
            scheduler.encoding.ready,
            scheduler.encoding.homeless,
            scheduler.encoding.staging,
        )
        assert not any(len(queue) for queue in queues), "a queue outlives its requests"
        assert scheduler.queued.units == 0, f"{scheduler.queued.units} units outlive their requests"
        for ledger in scheduler.instances.values():
            queues = (ledger.encode_queue, ledger.prefill_queue, ledger.running, ledger.arrivals)
            assert not any(len(queue) for queue in queues), ledger.name
            assert ledger.prompt_tokens == ledger.sequences == 0, ledger.name


def _audit_queues(scheduler: Scheduler, ledger: Ledger) -> None:
    """What is kept of requests where it is quickly found is what they themselves say."""
    name, everyone = ledger.name, scheduler.requests.values()
    places = {
        "prompts": (ledger.prompts, {r.request_id for r in everyone if r.p_name == name}),
        "sequences": (ledger.decodes, {r.request_id for r in everyone if r.d_name == name}),
        "KV holders": (
            ledger.kv_holders,
            {r.request_id for r in (*everyone, *scheduler.leaving.values()) if r.holdings.get((name, "kv"))},
        ),
    }
    for what, (kept, true) in places.items():
        assert set(kept) == true, f"{name} {what}: {sorted(kept)}, should be {sorted(true)}"
    ledger.prefill_queue.check()
    queues = (scheduler.encoding.homeless, *(other.encode_queue for other in scheduler.instances.values()))
    queued = sorted(repr(unit.key) for queue in queues for unit in queue if unit.target == name)
    expected = sorted(repr(key) for key in ledger.arrivals.queued())
    assert queued == expected, f"{name}: units {queued} are queued, {expected} are waited for"
