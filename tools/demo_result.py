"""What came out of the demonstration: the numbers behind the table and the plot."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from rich.box import ROUNDED
from rich.table import Table

if TYPE_CHECKING:
    from collections import Counter

    from demo_process import Event, Life

__all__ = ["GOAL", "Result"]

# The share of held-out digits that has to be read right.
GOAL = 0.95
MB = 1_000_000
MOST_COMMON = 2


@dataclass(frozen=True)
class Result:
    """All that was measured.

    Attributes:
        lives: One for each time that the training process was started.
        uploaded: The number of images put into S3.
        upload_seconds: How long that took.
        requests: How many requests s3torch sent, by operation.
        seconds: How long all took until here.
    """

    lives: list[Life]
    uploaded: int
    upload_seconds: float
    requests: Counter[str]
    seconds: float

    def of(self, name: str) -> list[Event]:
        """Return the events of all lives with a name."""
        return [event for life in self.lives for event in life.of(name)]

    @property
    def accuracy(self) -> float:
        """The share of held-out digits that the network reads right in the end."""
        return float(self.of("validated")[-1]["accuracy"])

    def repeated_steps(self) -> list[tuple[float, float]]:
        """Return the losses of each step that was done, lost with its process, and done again."""
        done: dict[tuple[int, int], float] = {}
        pairs = []
        for step in self.of("step"):
            place = step["epoch"], step["images"]
            if place in done:
                pairs.append((done[place], step["loss"]))
            done[place] = step["loss"]
        return pairs

    def table(self) -> Table:
        """Return the table at the end of the demonstration."""
        table = Table(show_header=False, box=ROUNDED)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        rates = [event["images"] / event["seconds"] for event in self.of("trained")]
        validated = self.of("validated")[-1]
        saved, resumed = self.of("saved"), self.of("resumed")
        (dcp,) = self.of("saved with DCP")
        repeated = self.repeated_steps()
        same = sum(first == second for first, second in repeated)
        size = f"{saved[-1]['bytes'] / MB:.1f}"
        verdict = "the same bit for bit" if dcp["same"] else "NOT THE SAME"
        deaths = ", ".join(life.death for life in self.lives if life.death)
        common = self.requests.most_common(MOST_COMMON)
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in common)
        others = self.requests.total() - sum(number for _, number in common)
        return [
            ("Upload", f"{self.uploaded:,} PNG files, {self.uploaded / self.upload_seconds:,.0f} images/s"),
            ("Training", f"{median(rates):,.0f} images/s (median of {len(rates)} epochs)"),
            ("Accuracy", f"{self.accuracy:.1%} of {validated['images']} held-out digits"),
            ("S3Checkpoint", f"{size} MB, saved in {_median(saved)}, loaded in {_median(resumed)}"),
            ("DCP", f"saved in {dcp['seconds']:.2f} s, loaded in {dcp['load_seconds']:.2f} s, {verdict}"),
            ("Killed", deaths),
            ("Resumed", f"{len(resumed)} times; {same} of {len(repeated)} repeated steps had the same loss"),
            ("Requests", f"{self.requests.total():,}: {kinds}, {others} others"),
            ("Time", f"{self.seconds:.0f} s"),
        ]


def _median(events: list[Event]) -> str:
    return f"{median(event['seconds'] for event in events):.2f} s"
