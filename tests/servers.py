"""JupyterLab as ``redlab lab`` starts it, for tests that talk to it."""

from __future__ import annotations

import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

# Of a shell that works in a lab itself, or in CI; each would make the server another one than a newcomer's.
_OURS = ("JUPYTER", "REDLAB_", "MPLBACKEND", "PYTEST", "DISPLAY", "WAYLAND_DISPLAY")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def lab(checkout: Path, home: Path, *words: str, timeout: float = 60) -> Iterator[str]:
    """Runs ``redlab lab`` in ``checkout`` with this package of redlab, and a ``home`` of its own.

    Gives the address that it prints, with the token.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    own = {"PYTHONPATH": str(checkout), "HOME": str(home), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "redlab.cli", "lab", *words]
    server = subprocess.Popen(
        command, cwd=checkout, env=inherited | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield _address(server, timeout)
    finally:
        server.terminate()  # and its kernels with it
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            raise


def _address(server: subprocess.Popen, timeout: float) -> str:
    """What the server prints to be copied into a browser, once it listens there.

    Its further lines are read on, or it would stop to wait.
    """
    found: queue.Queue[str] = queue.Queue()

    def read() -> None:
        lines = []
        for line in server.stdout:
            lines.append(line)
            if match := re.search(r"http://127\.0\.0\.1:\d+/\S+", line):
                found.put(match[0])
        found.put("".join(lines))

    threading.Thread(target=read, daemon=True).start()
    address = found.get(timeout=timeout)
    assert address.startswith("http://"), f"the server ended and said:\n{address}"
    _wait_for(urlsplit(address).port, time.monotonic() + timeout)
    return address


def _wait_for(port: int, until: float) -> None:
    """It says that it runs a moment before it does."""
    while time.monotonic() < until:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise TimeoutError(f"nobody listens on port {port}")
