"""What this package adds to every request of every client."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

from s3torch.core import UserAgent


def test_requests_name_the_version_of_torch():
    assert f"md/pytorch#{version('torch')}" in UserAgent().prefix.split()


def test_the_token_does_not_import_torch():
    code = (
        "import sys; from s3torch.datasets.plugin import s3torch_user_agent as token; "
        "print('md/pytorch#' in token(), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False"]


def test_the_package_has_the_classes_that_it_names():
    import s3torch.datasets as package

    assert all(getattr(package, name) for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    assert not hasattr(package, "S3UnknownDataset")
