"""Applies a user's transform to a sample of a shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["transformed"]


def transformed(transform: Callable[[Any], Any] | None, sample: Any) -> Any:
    """Returns what a transform makes of a sample; the sample itself without one.

    Errors get a note that names the sample.

    Raises:
        RuntimeError: The transform raised ``StopIteration``, which a loader would take for the end of the
        data.
    """
    if transform is None:
        return sample
    try:
        return transform(sample)
    except Exception as exc:
        where = f"{sample.get('__key__')} of {sample.get('__url__')}" if isinstance(sample, dict) else "a row"
        exc.add_note(f"while transforming {where}")
        if not isinstance(exc, StopIteration):
            raise
        raise RuntimeError(f"the transform raised StopIteration for {where}") from exc
