"""How far training is in its loader, where Lightning has fetched batches ahead."""

from __future__ import annotations

import sys
from typing import Any


def note_loader_states(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Puts states of loaders into a checkpoint that count only batches that were trained on.

    Lightning fetches one batch ahead of a loader without a length and saves the state that this loader has
    then, so that a resumed run would leave that batch out.
    """
    loop = trainer.fit_loop
    fetcher = getattr(loop, "_data_fetcher", None)
    loader = getattr(loop, "_combined_loader", None)
    saved = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
    datasets = sys.modules.get("s3torch.datasets")
    if datasets is None or loader is None or fetcher is None or "combined_loader" not in saved:
        return
    ahead = len(getattr(fetcher, "batches", ()))
    # As Lightning chooses them.
    names = ("state_dict", "load_state_dict")
    stateful = [one for one in loader.flattened if all(hasattr(one, name) for name in names)]
    saved["combined_loader"] = [
        one.state_dict(ahead=ahead, finished=fetcher.done and not ahead)
        if isinstance(one, datasets.ResumableLoader)
        else state
        for one, state in zip(stateful, saved["combined_loader"], strict=True)
    ]
