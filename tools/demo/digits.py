"""Puts the handwritten digits of scikit-learn into a bucket, as PNG files named by class."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image
from sklearn.datasets import load_digits

from s3torch.core import PutOptions, S3Client

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Digit", "handwritten_digits", "upload"]

PNG = PutOptions(content_type="image/png")
UPLOADS_AT_ONCE = 16
# Every fifth image of each class is held out for validation.
HELD_OUT = 5


@dataclass(frozen=True, slots=True)
class Digit:
    """An image of 8 by 8 pixels, and where it belongs in the bucket."""

    key: str
    image: Image.Image

    @property
    def is_for_training(self) -> bool:
        """False if the digit is held out for validation."""
        return self.key.startswith("train/")


def handwritten_digits() -> list[Digit]:
    """Returns all 1,797 digits: about 80 % of each class for training, the rest for validation."""
    data = load_digits()
    seen: Counter[int] = Counter()
    digits = []
    for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        part = "train" if seen[label] % HELD_OUT else "validation"
        seen[label] += 1
        # scikit-learn has 17 shades of grey, a PNG has 256.
        image = Image.fromarray((pixels * 255 / 16).round().astype("uint8"))
        digits.append(Digit(f"{part}/{label}/{number:04}.png", image))
    return digits


def upload(digits: list[Digit], bucket: str, *, uploaded: Callable[[int], object]) -> None:
    """Uploads images, several at once.

    Args:
        digits: What to upload.
        bucket: Where to.
        uploaded: Called with the number of images that are in S3 each time that one more is there.
    """
    with S3Client() as client, ThreadPoolExecutor(UPLOADS_AT_ONCE) as threads:

        def put(digit: Digit) -> None:
            with client.put_object(bucket, digit.key, options=PNG) as writer:
                digit.image.save(writer, format="PNG")

        try:
            for number, _ in enumerate(threads.map(put, digits), start=1):
                uploaded(number)
        finally:
            threads.shutdown(cancel_futures=True)
