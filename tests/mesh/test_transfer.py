import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epdjax.mesh.sharding import Submesh
from epdjax.mesh.transfer import gather_shards, move, shards_in_order


def submesh(first: int, *, data: int = 1, tensor: int = 1) -> Submesh:
    return Submesh.of(jax.devices()[first : first + data * tensor], data=data, tensor=tensor)


def array_on(where: Submesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> jax.Array:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return jax.device_put(values, where.sharding(axes, shape))


@pytest.mark.parametrize(("source", "target"), [(1, 1), (2, 2), (1, 2)])
def test_whole_or_equally_split_arrays_move(source: int, target: int) -> None:
    axes = ("heads", None) if source == target else (None, None)
    array = array_on(submesh(0, tensor=source), axes, (4, 6))
    sharding = submesh(4, tensor=target).sharding(axes, (4, 6))
    moved = move([array], [sharding])[0]
    assert moved.sharding == sharding
    np.testing.assert_array_equal(moved, array)


@pytest.mark.parametrize(("source", "target"), [(1, 2), (2, 1), (2, 4)])
def test_what_would_go_through_the_host_is_refused(source: int, target: int) -> None:
    array = array_on(submesh(0, tensor=source), ("heads", None), (4, 6))
    with pytest.raises(ValueError, match="through the host"):
        move(array, submesh(4, tensor=target).sharding(("heads", None), (4, 6)))


def test_one_sharding_serves_a_tree() -> None:
    where = submesh(3)
    moved = move({"a": jnp.ones(3), "b": [jnp.zeros(2)]}, where.replicated)
    assert all(leaf.sharding == where.replicated for leaf in jax.tree.leaves(moved))


def test_shards_come_in_the_order_of_the_rows() -> None:
    array = array_on(submesh(0, data=4), ("unit", None), (8, 3))
    pieces = shards_in_order(array)
    assert [piece.shape for piece in pieces] == [(2, 3)] * 4
    assert all(len(piece.devices()) == 1 for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), array)
    whole = array_on(submesh(0), ("unit", None), (8, 3))
    np.testing.assert_array_equal(shards_in_order(whole)[0], whole)


@pytest.mark.parametrize(("copies", "target"), [([(0, 1)], (4, 1)), ([(0, 2)], (2, 2)), ([(0, 1), (3, 1)], (2, 3))])
def test_shards_are_gathered_from_where_they_are(copies: list[tuple[int, int]], target: tuple[int, int]) -> None:
    """From (first device, width) to (first device, width): those on a device already are not copied."""
    split = copies[0][1] > 1
    axes = ("heads", None) if split else (None, None)
    arrays = [array_on(submesh(first, tensor=width), axes, (4, 6)) for first, width in copies]
    sharding = submesh(target[0], tensor=target[1]).sharding(axes, (4, 6))
    (made,) = gather_shards([(arrays, sharding)])
    assert made is not None and made.sharding == sharding
    np.testing.assert_array_equal(made, arrays[0])
    here = {s.device: s.data.unsafe_buffer_pointer() for a in arrays for s in a.addressable_shards}
    for shard in made.addressable_shards:
        if shard.device in here:
            assert shard.data.unsafe_buffer_pointer() == here[shard.device]


def test_shards_that_are_nowhere() -> None:
    whole = array_on(submesh(0), (None, None), (4, 6))
    halves = submesh(2, tensor=2).sharding(("heads", None), (4, 6))
    assert gather_shards([([whole], halves), ([], halves), ([whole], submesh(1).replicated)])[:2] == [None, None]
