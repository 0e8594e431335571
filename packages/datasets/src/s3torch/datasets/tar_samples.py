"""Groups the files of a tar archive into samples, by the naming of WebDataset.

Files that follow each other and have the same name up to the first dot of the file name are one sample: of
``dir/0001.jpg`` and ``dir/0001.seg.png`` the key is ``dir/0001``, and the parts are ``jpg`` and ``seg.png``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s3torch.datasets.tar_archive import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.datasets.tar_archive import TarMember

__all__ = ["SampleParts", "group_members", "split_name"]


@dataclass(frozen=True, slots=True)
class SampleParts:
    """What an archive has of one sample.

    Attributes:
        key: The name of its files, up to the first dot of the file name.
        start: Where in the archive its first header is.
        parts: What was made of each file, by its suffix in lower case and without the dot.
    """

    key: str
    start: int
    parts: dict[str, Any]


def split_name(name: str) -> tuple[str, str] | None:
    """Returns the key and the suffix of a file; ``None`` for files that belong to no sample.

    Those are files without a suffix, hidden ones, and the ones that WebDataset keeps for itself
    (``__name__``).
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    if not stem or not dot or (file.startswith("__") and file.endswith("__")):
        return None
    return f"{folder}{slash}{stem}", suffix.lower()


def group_members(members: Iterable[TarMember], load: Callable[[TarMember], Any]) -> Iterator[SampleParts]:
    """Yields the samples of an archive in their order.

    Args:
        members: The files in the order of the archive.
        load: Makes a part of a sample of a file, before the next file is asked for.

    Raises:
        ArchiveError: A sample has the same suffix twice.
    """
    sample: SampleParts | None = None
    for member in members:
        split = split_name(member.name)
        if split is None:
            continue
        key, suffix = split
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = SampleParts(key, member.start, {})
        if suffix in sample.parts:
            raise ArchiveError(member.start, f"the sample {key!r} has two files with the suffix {suffix!r}")
        sample.parts[suffix] = load(member)
    if sample is not None:
        yield sample
