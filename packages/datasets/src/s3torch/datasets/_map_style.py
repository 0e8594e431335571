"""A dataset with a length, whose samples are read by index in any order."""

from __future__ import annotations

import operator
import os
import threading
from collections import deque
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from s3torch.datasets._base import OBJECT_OPTIONS, ObjectDataset, ReadOptions, SampleT
from s3torch.datasets._opening import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from typing import SupportsIndex, Unpack

    from s3torch.core import S3ClientConfig, S3Reader, S3ReaderConstructorProtocol
    from s3torch.datasets.sources._sources import ObjectSource

# So many indices in a row are a habit; two may be chance, or a sampler of pairs.
_HABIT = 3


class S3MapDataset(ObjectDataset[SampleT], Dataset[SampleT]):
    """Objects of S3 by their number: ``len(dataset)``, ``dataset[3]``, ``dataset[-1]``.

    Its type parameter is what the transform returns. The first question for a length or a sample lists all
    objects; the list is kept and pickled with the dataset. All workers of all epochs share one listing,
    however they were started: where the parent has none, the first worker that needs it lists, and leaves it
    to the others in a private temporary folder. Under ``torchrun`` the ranks of a node share it the same way,
    unless the objects come from a callable of the user.

    ``DataLoader`` asks for whole batches (``__getitems__``), whose downloads run side by side. For indices
    that are asked for one after the other, and for such batches, the next ones are started as well; a jump to
    another index and ``close()`` drop them. With the default transform nothing is started, because its
    readers are handed out unread.

    The dataset can be pickled, survives ``fork`` and may be used by several threads.

    Args:
        region: The region; ``None`` takes it from the usual AWS places.
        get_dataset_objects: Takes the client and returns the objects.
        endpoint: The URL of a store other than AWS.
        transform: Makes a sample of an unread reader; the default returns the reader itself.
        s3client_config: The settings of the client.
        reader_constructor: How objects are read; the default is sequential.
        prefetch: How many objects are fetched ahead, of each at most the first part until its turn comes; 0
            fetches one after the other, ``None`` as many as fit in a share of the memory, at most 128.
        on_error: ``"skip"`` leaves missing and changed objects out of batches, with a warning in the log and
            a count in ``skipped``; a single ``dataset[i]`` always raises.
        hedge_after: Sends a second request for a small object whose answer is late, by seconds or by a
            quantile of the last answers, as in ``"p95"``; the first answer wins, and ``hedged`` counts.
        select: A ``Selection``, which leaves out objects.
        cache_dir: A folder on a local disk where what was read is kept, for all processes of this machine, so
            that the second epoch reads from there; see ``DiskCache``.
        cache_limit: How many bytes the folder may have; ``None`` for half of what its disk has for it.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    _kind = "map"
    _options = OBJECT_OPTIONS

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: ObjectSource,
        endpoint: str | None = None,
        transform: Callable[[S3Reader], SampleT] = identity,  # type: ignore[assignment]
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **options: Unpack[ReadOptions],
    ) -> None:
        super().__init__(
            region,
            get_dataset_objects,
            endpoint=endpoint,
            transform=transform,
            s3client_config=s3client_config,
            reader_constructor=reader_constructor,
            **options,
        )

    def _prepare(self) -> None:
        super()._prepare()
        self._access = IndexAccess()

    def __len__(self) -> int:
        return len(self._listing())

    def __getitem__(self, index: SupportsIndex) -> SampleT:
        return self._sample(self._reader(self._number(index)))

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[SampleT]:
        """Returns the samples of a batch in the order of the indices, with several downloads in flight."""
        self._foresee(indices)
        try:
            if type(self).__getitem__ is not S3MapDataset.__getitem__:
                # A subclass makes its own samples, and its method has to be the one that counts.
                return [self[index] for index in indices]
            numbers = [self._number(index) for index in indices]
            return [sample for _, sample in self._samples(map(self._reader, numbers))]
        except BaseException:
            self._access.stop()
            raise

    def _reader(self, number: int) -> S3Reader:
        opener, objects = self._opener(), self._listing()
        reader = None
        if self._prefetch != 0:
            reader = self._access.reader(
                number,
                lambda: opener.ahead(map(objects.__getitem__, range(number, len(objects))), gently=True),
            )
        return opener.open(objects[number]) if reader is None else reader

    def _foresee(self, indices: Sequence[SupportsIndex]) -> None:
        """Starts the objects of a batch that is asked for next."""
        if self._prefetch == 0:
            return
        opener, objects = self._opener(), self._listing()
        try:
            numbers = [self._number(index) for index in indices]
        except (IndexError, TypeError):
            return  # A subclass may count in another way; else it is an error in a moment.
        self._access.expect(numbers, lambda: opener.ahead(map(objects.__getitem__, numbers)))

    def __iter__(self) -> Iterator[SampleT]:
        # Without this, an IndexError of a transform would end a loop over the dataset silently.
        try:
            for index in range(len(self)):
                yield self[index]
        finally:
            self._access.stop()

    def close(self) -> None:
        """Closes the client of this process and drops what was read ahead; may be called again."""
        self._access.stop()
        super().close()

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:
            # Here the first epoch need not wait for a worker to list.
            self._listing()
        return self.__dict__.copy()

    def _number(self, index: SupportsIndex) -> int:
        if isinstance(index, slice):
            raise TypeError("slices are not supported; torch.utils.data.Subset selects samples")
        count, number = len(self._listing()), operator.index(index)
        if not -count <= number < count:
            raise IndexError(f"index {number} is out of range for {count} objects")
        return number % count


class IndexAccess(threading.local):
    """Notices when a thread asks for one index after another, or is told what it asks for next.

    Each thread has its own, and so has a forked process.
    """

    def __init__(self) -> None:
        self._readers: Generator[S3Reader] | None = None
        self._batch: deque[int] = deque()
        self._misled = False
        self.stop()

    def stop(self) -> None:
        """Drops what was read ahead for this thread, and forgets what it has asked for."""
        self._drop()
        self._pid = os.getpid()
        self._following = -1
        self._length = 0

    def _drop(self) -> None:
        self._batch.clear()
        self._is_batch = False
        readers, self._readers = self._readers, None
        if readers is not None:
            readers.close()

    def reader(self, index: int, start: Callable[[], Generator[S3Reader]]) -> S3Reader | None:
        """Returns the reader of an index that was foreseen, else ``None``.

        ``start`` returns the readers from this index on, with more of them started.
        """
        if self._pid != os.getpid():
            self.stop()
        foreseen = index == (self._batch[0] if self._batch else self._following)
        if not foreseen:
            self._misled = self._misled or bool(self._batch)
            self.stop()
        self._length = self._length + 1 if index == self._following else 1
        self._following = index + 1
        if self._batch:
            self._batch.popleft()
        elif self._readers is None and self._length >= _HABIT:
            self._readers = start()
        # Also None after an error has ended the generator.
        reader = None if self._readers is None else next(self._readers, None)
        if reader is None or (self._is_batch and not self._batch):
            self._drop()
        return reader

    def expect(self, indices: Sequence[int], start: Callable[[], Generator[S3Reader]]) -> None:
        """Announces the batch that this thread asks for next; ``start`` returns its readers.

        A thread that once asked for something else is not believed any more.
        """
        if self._pid != os.getpid():
            self.stop()
        self._misled = self._misled or bool(self._batch)
        in_a_row = list(indices) == list(range(self._following, self._following + len(indices)))
        if self._misled or (in_a_row and self._length >= _HABIT):
            return
        self._drop()
        self._batch.extend(indices)
        self._readers, self._is_batch = start(), True

    def __reduce__(self) -> tuple[Any, ...]:
        return (IndexAccess, ())
