"""Asking the template for processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = HERE / "python"
SOCKET, REAL = "TESTS_TEMPLATE", "TESTS_PYTHON"
BARE = ".bare"  # at the end of a socket's name: libraries only
#: What libraries read while they are imported: a command with another value of these runs as a plain process.
AT_IMPORT = (
    "HF_",
    "HUGGINGFACE",
    "TRANSFORMERS",
    "TORCH",
    "OMP",
    "MKL",
    "OPENBLAS",
    "CUDA",
    "PYTHON",
    "HOME",
    "XDG",
    "LD_",
)


class Template:
    """Running template processes; they end with this one."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.path = tempfile.mktemp(prefix="circuits-tests-", suffix=".sock")
        words = [sys.executable, str(HERE / "template.py"), self.path, self.path + BARE]
        self.process = subprocess.Popen(words, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        if [self.process.stdout.readline() for _ in range(2)] != ["ready\n"] * 2:  # with this checkout, and without
            raise RuntimeError("the template processes did not start")

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        for path in (self.path, self.path + BARE):
            Path(path).unlink(missing_ok=True)


class Running:
    """A process that the template forked."""

    def __init__(
        self,
        path: str,
        run: str,
        argv: Sequence[str],
        cwd: str,
        env: Mapping[str, str],
        python: str,
        fds: Sequence[int],
    ) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        asked = {"run": run, "argv": list(argv), "cwd": cwd, "env": dict(env), "python": python}
        text = f"{json.dumps(asked)}\n".encode()
        sent = socket.send_fds(self._connection, [text[: 1 << 16]], list(fds))
        self._connection.sendall(text[sent:])
        self._lines = self._connection.makefile()
        self.pid = int(self._lines.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; a negative one is a signal's number.

        Raises:
            TimeoutError: it had to be killed.
        """
        self._connection.settimeout(timeout)
        try:
            return int(self._lines.readline())
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            raise

    def signal(self, number: int) -> None:
        """Hand on a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
