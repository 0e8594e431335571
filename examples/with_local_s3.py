"""Runs a command with an S3 server on this machine, which has the bucket ``my-bucket``.

python with_local_s3.py python image-classification/train.py s3://my-bucket/examples/images
"""

from __future__ import annotations

import os
import subprocess
import sys

from s3torch.testing import start_seaweedfs

# What would lead elsewhere than to the server.
OTHER = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3")


def main() -> int:
    """Runs the command; returns its exit code."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    kept = {name: value for name, value in os.environ.items() if name not in OTHER}
    with start_seaweedfs() as server:
        server.create_bucket("my-bucket")
        command = sys.argv[1:]
        return subprocess.run(command, env={**kept, **server.environment()}, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
