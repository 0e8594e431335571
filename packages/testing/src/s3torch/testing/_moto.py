"""How moto is set up as a test server: in a process of its own, with accounts where they are asked for."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from s3torch.core.errors import ConfigurationError
from s3torch.testing._ports import HOST
from s3torch.testing._process import ServerStartError
from s3torch.testing._server import Identity, S3Server

_SERVER = Path(__file__).with_name("_moto_server.py")


def command() -> list[str]:
    """Returns the command line.

    Raises:
        ConfigurationError: moto, or what its server needs, is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask", "werkzeug")):
        raise ConfigurationError(
            'the server of moto is not installed; run: python -m pip install "moto[s3,server]"'
        )
    return [sys.executable, "-P", str(_SERVER)]


def environment() -> dict[str, str]:
    """Returns this process's environment without the user's AWS settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def make_users(port: int) -> tuple[Identity, Identity]:
    """Makes somebody who may do everything and somebody who may only read, and lets nobody else in."""
    nobody = Identity.random()
    server = S3Server("moto", f"http://{HOST}:{port}", nobody.access_key, nobody.secret_key)
    iam = server.client("iam")
    try:
        admin = _make_user(iam, "admin", actions=["*"])
        reader = _make_user(iam, "reader", actions=["s3:Get*", "s3:List*"])
    finally:
        iam.close()
    _check_signatures(port)
    return admin, reader


def _make_user(iam: Any, name: str, *, actions: list[str]) -> Identity:
    iam.create_user(UserName=name)
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=name, PolicyName="s3torch", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return Identity(key["AccessKeyId"], key["SecretAccessKey"])


def _check_signatures(port: int) -> None:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        # The number of requests that are still free. As a form, the usual type, it is not understood.
        connection.request("POST", "/moto-api/reset-auth", body=b"0", headers={"Content-Type": "text/plain"})
        response = connection.getresponse()
        response.read()
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise ServerStartError(f"moto does not switch its signature checks on: status {response.status}")
