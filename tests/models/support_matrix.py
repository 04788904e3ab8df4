"""Write the table of families in docs/models.md from the reports of the tests that covered them.

``python -m tests.models.support_matrix build/parity.xml build/slow.xml``, after ``make parity slow``. Only what passed
is in the table.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- support matrix: written by tests/models/support_matrix.py -->", "<!-- end of support matrix -->"
KINDS = ("text", "image", "video", "audio")


def passed(reports: list[Path]) -> list[dict[str, str]]:
    """The properties of every test that described itself and passed."""
    found = []
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            properties = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
            if "family" in properties and not any(
                case.find(tag) is not None for tag in ("failure", "error", "skipped")
            ):
                found.append(properties)
    return found


def table(cases: list[dict[str, str]]) -> str:
    """A row per family, in Markdown."""
    rows = ["| `model_type` | " + " | ".join(KINDS) + " | judge | configurations | meshes |", "|---" * 8 + "|"]
    for family in sorted({case["family"] for case in cases}):
        mine = [case for case in cases if case["family"] == family]
        kinds = {kind for case in mine for kind in case["modalities"].split()}
        meshes = dict.fromkeys(mesh for case in mine for mesh in case["meshes"].split())
        cells = [f"`{family}`", *("yes" if kind in kinds else "" for kind in KINDS), mine[0]["judge"]]
        cells += ["; ".join(dict.fromkeys(case["variant"] for case in mine)), ", ".join(f"`{mesh}`" for mesh in meshes)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(reports: list[Path]) -> None:
    """Replace the table in the docs."""
    before, rest = DOCS.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{table(passed(reports))}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
