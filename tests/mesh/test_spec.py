import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.mesh.spec import Group, MeshSpec, MeshSpecError, auto_spec


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("5E2P1D", [(5, "E", 1), (2, "P", 1), (1, "D", 1)]),
        ("8EPD", [(8, "EPD", 1)]),
        ("7EP1D", [(7, "EP", 1), (1, "D", 1)]),
        ("1E3PD", [(1, "E", 1), (3, "PD", 1)]),
        ("2E1Px2,1Dx4", [(2, "E", 1), (1, "P", 2), (1, "D", 4)]),
        ("1E,1P,1Dx2", [(1, "E", 1), (1, "P", 1), (1, "D", 2)]),
        (" 1e 1p 1d ", [(1, "E", 1), (1, "P", 1), (1, "D", 1)]),
        ("1DPE", [(1, "EPD", 1)]),
    ],
)
def test_published_layouts_parse(text: str, groups: list[tuple[int, str, int]]) -> None:
    spec = MeshSpec.parse(text)
    assert spec.groups == tuple(Group(*g) for g in groups)
    assert spec.devices == sum(c * t for c, _, t in groups)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("E1P1D", "position 1: expected a count, found 'E'"),
        ("1E1P", "no instance for decode (D)"),
        ("2", "'2' is not followed by roles"),
        ("1E1Q1D", "position 3: unknown role 'Q'"),
        ("1E1PP1D", "name a stage twice"),
        ("0E1P1D", "at least one instance, not 0"),
        ("1E1Px1D", "a comma must follow a tensor width"),
        ("1E1Px,1D", "'x' must be followed by a tensor width"),
        ("1E1Px0,1D", "tensor width of at least 1"),
        ("1E1Px21D", "comma must follow"),
        ("2Ex2,1P1D", "write 4E instead of 2Ex2"),
        ("1E1P1D,", "ends in a comma"),
        ("1E,,1P1D", "expected a count, found ','"),
        ("1E1P-1D", "expected a count, found '-'"),
    ],
)
def test_errors_say_where_and_what(text: str, says: str) -> None:
    with pytest.raises(MeshSpecError) as error:
        MeshSpec.parse(text)
    assert says in str(error.value)


groups = st.builds(
    lambda count, roles, tensor: Group(count, roles, 1 if roles == "E" else tensor),
    st.integers(1, 99),
    st.sampled_from(["E", "P", "D", "EP", "ED", "PD", "EPD"]),
    st.integers(1, 16),
)


@given(st.lists(groups, min_size=1, max_size=5))
def test_written_specs_read_back(some: list[Group]) -> None:
    spec = MeshSpec((*some, Group(1, "EPD")))
    assert MeshSpec.parse(str(spec)) == spec


@given(st.integers(1, 300))
def test_auto_uses_every_device(devices: int) -> None:
    assert auto_spec(devices).devices == devices


def test_auto_scales_the_papers_split() -> None:
    assert [str(auto_spec(n)) for n in (1, 2, 3, 4, 8)] == ["1EPD", "1E1PD", "1E1P1D", "2E1P1D", "5E2P1D"]


@given(st.text(alphabet="0123456789EPDxX,abc -", max_size=12))
def test_anything_else_is_one_clear_error(text: str) -> None:
    try:
        MeshSpec.parse(text)
    except MeshSpecError as error:
        assert len(str(error)) > 10
