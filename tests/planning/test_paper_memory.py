import pytest

from epdjax.planning.memory_search import CONTEXT, MEMORY
from epdjax.planning.paper.memory import (
    CHUNKED,
    MODELS,
    ONE_STEP,
    RESOLUTIONS,
    TABLE_2,
    TABLE_3,
    TABLE_8,
    WEIGHTS_SAVED,
    Row,
    markdown,
    memory_claims,
    table2,
    table3,
    table8,
)


def test_figures_of_the_paper_are_all_there() -> None:
    """Its ratios, as its text states them: 10 times the pictures, 22 times the batch, 2.2 times the KV pool."""
    for table in (TABLE_2, TABLE_3):
        assert set(table) == set(MODELS) and all(set(rows) == set(RESOLUTIONS) for rows in table.values())
    assert max(epd / both for rows in TABLE_2.values() for both, epd in rows.values()) == 10
    batches = [(row[0], row[1]) for rows in TABLE_3.values() for row in rows.values()]
    assert max(encode / both for both, encode in batches if not isinstance(both, str)) == 22
    shares = [row for rows in TABLE_8.values() for row in rows.values()]
    numbers = [(both, apart) for both, apart in shares if not isinstance(both, str) and not isinstance(apart, str)]
    assert max(apart / both for both, apart in numbers) == pytest.approx(2.2, abs=0.03)
    for apart, rest in WEIGHTS_SAVED.values():
        assert apart + rest == pytest.approx(100, abs=0.15)


def test_rows_are_printed_as_they_are() -> None:
    rows = [
        Row("2", "M", "1x1", "E+P", ONE_STEP, 7, 9.0, MEMORY, 9),
        Row("3", "M", "1x1", "E", CHUNKED, "OOM", None),
    ]
    assert [markdown(row) for row in rows] == [
        "| 2 | M | 1x1 | E+P | one step | 7 | 9 | memory | 9 |",
        "| 3 | M | 1x1 | E | chunked | OOM |  |  |  |",
    ]


@pytest.mark.deviceless
def test_encoding_apart_leaves_more() -> None:
    """The least of the tables that shows it: whatever fits in a monolith fits in instances apart, and more."""
    name, size = ["MiniCPM-V-2.6"], [RESOLUTIONS[-1]]
    both, apart = table8(name, [5], [CHUNKED])
    assert both.ours and apart.ours and both.ours < apart.ours < 100
    both, apart = table2(name, size, [CHUNKED])
    assert both.ours and apart.ours and both.ours <= apart.ours and apart.bound == CONTEXT
    together, encoder, prefill = table3(name, size, [CHUNKED])
    assert encoder.ours is None and together.ours and prefill.ours and together.ours <= prefill.ours
    saved = {row.split: row for row in memory_claims(name) if row.case.startswith("weights")}
    assert saved["E"].ours and saved["P"].ours and saved["E"].ours + saved["P"].ours == pytest.approx(100)
