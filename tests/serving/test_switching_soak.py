"""Switch after switch while requests are served, on eight virtual devices."""

import gc
import itertools
import random
from pathlib import Path

import jax
import pytest

from epdjax.mesh.places import spec_of
from epdjax.serving.role_plans import SwitchRefused, after_switch, plan_switch
from tests.serving.deployments import make_llm
from tests.serving.test_switching import Crowd, expected, settle  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow
ROLES = ["E", "P", "D", "EP", "ED", "PD", "EPD"]


def tour() -> list[str]:
    """Roles such that each follows on each other one: a closed walk over all ordered pairs."""
    left = {role: [other for other in ROLES if other != role] for role in ROLES}
    stack, walk = [ROLES[0]], []
    while stack:  # Hierholzer's algorithm
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            walk.append(stack.pop())
    return walk[::-1]


def live_bytes() -> int:
    gc.collect()
    shards = [shard.data for array in jax.live_arrays() for shard in array.addressable_shards]
    return sum({shard.unsafe_buffer_pointer(): shard.nbytes for shard in shards}.values())


def test_every_ordered_pair_of_roles(checkpoint: Path, expected: list[tuple[int, ...]]) -> None:  # noqa: F811
    walk = tour()
    assert set(itertools.pairwise(walk)) == set(itertools.permutations(ROLES, 2))
    with make_llm(checkpoint, "2E2P1D1EPD", irp=False) as llm:
        name = llm.deployment.places[-1].name
        llm.switch_roles(name, walk[0])
        with Crowd(llm, expected) as crowd:
            for roles in walk[1:]:
                llm.switch_roles(name, roles)
                assert llm.deployment.instances[name].roles == roles
                crowd.wait_for(2)
        settle(llm)


def test_fifty_random_switches(checkpoint: Path, expected: list[tuple[int, ...]]) -> None:  # noqa: F811
    rng = random.Random(0)
    with make_llm(checkpoint, "3E2P3D") as llm:
        made, sizes = 0, []
        for _ in range(2):
            with Crowd(llm, expected, clients=6):
                while made < 25 * (len(sizes) + 1):
                    place = rng.choice(llm.deployment.places)
                    try:
                        llm.switch_roles(place.name, rng.choice(ROLES))
                    except SwitchRefused:
                        continue
                    made += 1
            for name, roles in back_to(llm, "3E2P3D"):
                llm.switch_roles(name, roles)
            settle(llm)
            sizes.append(live_bytes())
        assert str(spec_of(llm.deployment.places)) == "3E2P3D"
        assert abs(sizes[1] - sizes[0]) < 2**16, "memory is what it was"


def back_to(llm, mesh: str):
    """Switches that lead to a layout of single devices, one at a time as they are planned."""
    wanted = {"E": 3, "P": 2, "D": 3}
    assert mesh == "3E2P3D"
    while str(spec_of(llm.deployment.places)) != mesh:
        places = llm.deployment.places
        have = {role: sum(len(p.devices) for p in places if p.roles == role) for role in wanted}
        short = next(role for role in wanted if have[role] < wanted[role])
        giver = next(p for p in places if len(p.roles) > 1 or have[p.roles] > wanted[p.roles])
        plan = plan_switch(places, giver.name, short)
        assert len(after_switch(places, plan)) >= 3
        yield giver.name, short
