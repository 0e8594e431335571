"""Draw how the training went, with its deaths."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from demo_result import GOAL

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from demo_process import Event, Life
    from demo_result import Result

__all__ = ["draw"]

BLUE, RED, GREEN, GREY = "#1f6fb4", "#c8352b", "#2a8a4a", "#6b7280"


def draw(result: Result, path: Path) -> None:
    """Write a PNG file, which appears whole or not at all."""
    figure = Figure(figsize=(10, 7.5), dpi=120, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1])
    draw_loss(figure.add_subplot(grid[0, :]), result)
    draw_accuracy(figure.add_subplot(grid[1, 0]), result)
    draw_throughput(figure.add_subplot(grid[1, 1]), result)
    figure.suptitle("A training run on S3, killed twice and resumed", fontsize=14)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(unfinished, format="png")
    unfinished.replace(path)


def draw_loss(axes: Axes, result: Result) -> None:
    """Draw the loss of each step; steps that were lost with their process lie behind their repetition."""
    per_epoch = result.of("trained")[0]["images"]
    for life, following in zip(result.lives, [*result.lives[1:], None], strict=True):
        last = following.first_epoch - 1 if following else life.last_epoch
        kept = [step for step in life.of("step") if step["epoch"] <= last]
        lost = [step for step in life.of("step") if step["epoch"] > last]
        axes.plot(*curve(kept, per_epoch), color=BLUE, linewidth=1.3, zorder=3)
        axes.plot(*curve(lost, per_epoch), color=RED, linewidth=5, alpha=0.35, zorder=2)
    for life in result.lives[:-1]:
        mark_death(axes, life, per_epoch)
    for life in result.lives[1:]:
        axes.axvline(life.first_epoch - 1, color=GREEN, linestyle=":", linewidth=1.5)
    axes.set(xlabel="epochs", yscale="log")
    axes.set_xlim(0, result.lives[-1].last_epoch + 0.05)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(handles=legend(), loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=4)
    finish(axes, "Training loss of each step")


def curve(steps: list[Event], per_epoch: int) -> tuple[list[float], list[float]]:
    """Return where steps are on the axis of epochs, and their losses."""
    return [progress(step, per_epoch) for step in steps], [step["loss"] for step in steps]


def progress(step: Event, per_epoch: int) -> float:
    """Return how many epochs are done after a step."""
    return float(step["epoch"] - 1 + step["images"] / per_epoch)


def mark_death(axes: Axes, life: Life, per_epoch: int) -> None:
    """Mark the last step of a process that was killed, and say when that was."""
    place = progress(life.of("step")[-1], per_epoch)
    axes.axvline(place, color=RED, linestyle="--", linewidth=1.5)
    axes.annotate(
        textwrap.fill(f"killed {life.death}".replace("epoch ", "epoch\N{NO-BREAK SPACE}"), 12),
        (place, 0.97),
        xycoords=axes.get_xaxis_transform(),
        xytext=(5, 0),
        textcoords="offset points",
        color=RED,
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        zorder=4,
    )


def legend() -> list[Line2D]:
    """Return what the lines of the upper plot mean."""
    return [
        Line2D([], [], color=BLUE, linewidth=1.3, label="kept"),
        Line2D([], [], color=RED, linewidth=5, alpha=0.35, label="lost and repeated"),
        Line2D([], [], color=RED, linestyle="--", linewidth=1.5, label="killed (SIGKILL)"),
        Line2D([], [], color=GREEN, linestyle=":", linewidth=1.5, label="resumed from S3"),
    ]


def draw_accuracy(axes: Axes, result: Result) -> None:
    """Draw the accuracy on the held-out digits after each epoch."""
    last = {event["epoch"]: event["accuracy"] for event in result.of("validated")}
    axes.plot(list(last), list(last.values()), color=BLUE, marker="o")
    axes.axhline(GOAL, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"goal: {GOAL:.0%}",
        (max(last), GOAL),
        xytext=(0, -4),
        textcoords="offset points",
        color=GREY,
        ha="right",
        va="top",
    )
    axes.set_xlabel("epoch")
    axes.set_ylim(min(0.8, *last.values()) - 0.02, 1.005)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    finish(axes, "Accuracy on held-out digits")


def draw_throughput(axes: Axes, result: Result) -> None:
    """Draw how many images each epoch read, decoded and trained on in a second."""
    rates = [event["images"] / event["seconds"] for event in result.of("trained")]
    places = range(len(rates))
    bars = axes.bar(places, rates, color=BLUE, width=0.65)
    axes.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=9)
    axes.set_xlabel("epoch, in the order in which they ran")
    axes.set_xticks(places, [str(event["epoch"]) for event in result.of("trained")])
    axes.margins(y=0.12)
    finish(axes, "Images per second, from S3 until trained on")


def finish(axes: Axes, title: str) -> None:
    """Give a plot the common look."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
