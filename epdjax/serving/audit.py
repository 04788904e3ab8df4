"""Do the scheduler's books balance? Property tests ask after every step, the engine whenever it falls idle."""

from collections.abc import Sized

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
                held += ledger.arrivals.held()
            assert len(held) == pool.users, f"{name} {pool_name}: {len(held)} holds, {pool.users} counted"
            assert len(set(held)) == pool.held, f"{name} {pool_name}: {len(set(held))} != {pool.held}"
            assert pool.held + pool.available == pool.capacity, f"{name} {pool_name}"
    pending = sum(r.spec.media_bytes for r in scheduler.requests.values())
    assert scheduler.queued.media_bytes == pending, f"media bytes: {scheduler.queued.media_bytes} != {pending}"
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
