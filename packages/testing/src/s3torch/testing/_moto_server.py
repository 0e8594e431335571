"""The program that serves moto on a free port of loopback and writes the port to the file ``port``.

It is run as a file, ``python -P _moto_server.py``, and stops by being killed.
"""

from __future__ import annotations

import threading
from pathlib import Path


def main() -> None:
    """Serves until the process is killed."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    # Renamed, so that nobody sees the file before the number is in it.
    Path("port.new").write_text(str(port))
    Path("port.new").rename("port")
    threading.Event().wait()


if __name__ == "__main__":
    main()
