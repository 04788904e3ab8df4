"""Charts of what planning found, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def attainment_chart(
    path: str | Path, curves: Mapping[str, Sequence[tuple[float, float]]], title: str, target: float = 0.9
) -> None:
    """SLO attainment against rate.

    Args:
        path: of the file to write; its suffix says the format.
        curves: for each label points (requests per second, share of requests that met the SLO).
        target: drawn as a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
    for label, points in curves.items():
        axes.plot(*zip(*sorted(points)), marker="o", markersize=3, label=label)
    axes.axhline(target, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="requests per second", ylabel="SLO attainment", ylim=(0, 1.03), title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
