"""The plots of the simulation, readable in print: each line has a dash and a marker of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scale.simulation import Outcome

# Okabe and Ito's colours, which can be told apart with any kind of colour vision.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00", "linestyle": "--", "marker": "s", "linewidth": 3.5},
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#000000", "linestyle": ":", "marker": "^"},
    {"color": "#009E73", "linestyle": "-.", "marker": "D"},
)
_STEP = 5


def draw_rates(
    outcomes: Mapping[str, Outcome], limit: float, target: Path, *, scale: int, title: str
) -> None:
    """Draws what is served and what is refused over time, one above the other."""
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for (name, outcome), style in zip(outcomes.items(), STYLES, strict=False):
        for axis, counted in zip(axes, (outcome.served_per_second, outcome.refused_per_second), strict=True):
            seconds, rates = _rates(counted, outcome.seconds, scale)
            axis.plot(seconds, rates, label=name, markevery=6, markersize=5, **style)
    axes[0].axhline(limit, color="0.5", linewidth=1)
    axes[0].annotate(
        f"one range of keys: {limit:,.0f}/s", (0.75, limit), xycoords=("axes fraction", "data"),
        xytext=(0, 5), textcoords="offset points",
        ha="right", va="bottom", fontsize=8, color="0.3",
    )  # fmt: skip
    axes[0].set_ylabel("served a second")
    axes[1].set_ylabel("503 a second")
    axes[1].set_yscale("symlog", linthresh=10)
    for axis in axes:
        axis.set_ylim(bottom=0)
    axes[1].set_xlabel("seconds")
    axes[0].legend(frameon=False, fontsize=9)
    axes[0].set_title(title, fontsize=11, loc="left")
    _finish(figure, axes, target)


def draw_lines(
    lines: Mapping[str, Sequence[tuple[float, float | None]]],
    target: Path,
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
    failed: str = "",
) -> None:
    """Draws lines; a point whose value is ``None`` has failed and stands as a cross at the bottom."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for number, ((name, points), style) in enumerate(zip(lines.items(), STYLES, strict=False)):
        done = [(at, value) for at, value in points if value is not None]
        axis.plot(*zip(*done, strict=True) if done else ([], []), label=name, **style)
        crosses = [at for at, value in points if value is None]
        height = -0.03 - 0.05 * number
        axis.plot(
            crosses, [height + 0.15] * len(crosses), "x", transform=axis.get_xaxis_transform(),
            color=style["color"], markersize=8, markeredgewidth=2,
            label=f"{name}: {failed}" if crosses else None,
        )  # fmt: skip
    if log:
        axis.set_xscale("log", base=2)
        ticks = [at for at, _ in next(iter(lines.values()))]
        axis.set_xticks(ticks, [f"{at:g}" for at in ticks])
        axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=11, loc="left")
    axis.legend(frameon=False, fontsize=9)
    _finish(figure, [axis], target)


def _rates(counted: Mapping[int, int], seconds: float, scale: int) -> tuple[list[float], list[float]]:
    """Averages over some seconds, as a store of full size would have had them."""
    starts = range(0, int(seconds) + 1, _STEP)
    means = [sum(counted.get(second, 0) for second in range(at, at + _STEP)) / _STEP for at in starts]
    return [at + _STEP / 2 for at in starts], [mean * scale for mean in means]


def _finish(figure: Any, axes: Any, target: Path) -> None:
    for axis in axes:
        axis.grid(visible=True, color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    for suffix in (".png", ".svg"):
        figure.savefig(
            target.with_suffix(suffix), dpi=150, metadata={"Date": None} if suffix == ".svg" else None
        )
    plt.close(figure)
