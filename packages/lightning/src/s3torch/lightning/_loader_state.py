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
    fetcher, loaders = loop._data_fetcher, _stateful(loop)
    saved = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
    if fetcher is None or "combined_loader" not in saved:
        return
    ahead = len(getattr(fetcher, "batches", ()))
    saved["combined_loader"] = [
        one.state_dict(ahead=ahead, finished=fetcher.done and not ahead) if _is_resumable(one) else state
        for one, state in zip(loaders, saved["combined_loader"], strict=True)
    ]


def begin_epoch(trainer: Any) -> None:
    """Starts loaders again that Lightning has started for another epoch than the one that begins.

    It fetches the first batch of a resumed run before it says which epoch that is.
    """
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    if getattr(fetcher, "batches", ()) and any(
        _is_resumable(one) and not one.has_begun for one in _stateful(loop)
    ):
        iter(fetcher)


def _stateful(loop: Any) -> list[Any]:
    """Returns the loaders that have a state, as Lightning chooses them."""
    names = ("state_dict", "load_state_dict")
    loaders = () if loop._combined_loader is None else loop._combined_loader.flattened
    return [one for one in loaders if all(hasattr(one, name) for name in names)]


def _is_resumable(loader: Any) -> bool:
    # Who has such a loader has imported its class.
    datasets = sys.modules.get("s3torch.datasets")
    return datasets is not None and isinstance(loader, datasets.ResumableLoader)
