"""The template: ``python tests/warm/template.py SOCKET BARE``. Forks for each request until its standard input closes.

It is two processes. One has imported libraries only and listens at BARE: what it forks runs the code of any checkout
(``script``) or a program's text (``code``). The other is forked from it, has imported this checkout as well, and listens at SOCKET.

A request is one JSON line with ``run`` (launch, element, script, code), ``argv``, ``cwd``, ``env`` and ``python``, and the standard
streams as three file descriptors beside it; the answers are the process's id, then its exit status (negative: a signal's number).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import traceback
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "torch", "transformers.models.qwen2.modeling_qwen2", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "transformers.tokenization_utils_fast",
    "safetensors.torch", "hydra.main", "hydra._internal.utils", "hydra._internal.hydra", "pandas", "pyarrow.parquet", "scipy.stats",
    "scipy.optimize", "jinja2", "rich.live", "rich.table",
    "wandb", "wandb.sdk.launch.inputs.internal",  # the first wandb.init imports it: two seconds of a process
)  # fmt: skip


def libraries() -> None:
    """Import what command lines import, and start nothing: no thread, no device."""
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as e:
            print(f"template: {e}", file=sys.stderr)
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("qwen2")


def house() -> None:
    """Import this checkout, and fill what it remembers for good."""
    import circuits

    for info in pkgutil.walk_packages(circuits.__path__, "circuits."):
        if not info.name.startswith("circuits.launch.slurm"):  # its hydra plugin looks at the environment
            importlib.import_module(info.name)
    from circuits.command import asked
    from circuits.report import page

    asked.composed(["task=sae", "layer=1", "sae.k=8", "sae=topk"])
    page.template()
    gc.freeze()


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request and its streams."""
    head, fds, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    text = head
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 20)
    return json.loads(text), fds


def _launch(argv: list[str]) -> int:
    """This checkout's command line."""
    sys.argv = [str(ROOT / "launch.py"), *argv]
    from circuits.launch.cli import main

    return main(argv)


def _element(argv: list[str]) -> int:
    """``python -m circuits.launch.element``."""
    sys.argv = ["element", *argv]
    from circuits.launch.element import main

    return main(argv)


def _script(argv: list[str]) -> int:
    """``python FILE WORDS``."""
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")
    return 0


def _code(argv: list[str]) -> int:
    """``python -c TEXT WORDS``."""
    sys.argv = ["-c", *argv[1:]]
    sys.path[:0] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.modules["__main__"] = main = types.ModuleType("__main__")  # which knows no name of this file
    exec(compile(argv[0], "<string>", "exec"), vars(main))
    return 0


RUN = {"launch": _launch, "element": _element, "script": _script, "code": _code}


def run(asked: dict[str, Any], fds: list[int]) -> None:
    """Become the process that was asked for; does not return."""
    code = 1
    try:
        os.setsid()
        from wandb.sdk.data_types._private import MEDIA_TMP

        MEDIA_TMP._finalizer.detach()  # the template's: the first to end would delete it for all that are forked
        atexit.unregister(MEDIA_TMP.cleanup)
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        os.closerange(3, 64)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        sys.executable = asked["python"]
        code = RUN[asked["run"]](asked["argv"])
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            import threading

            threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def serve(connection: socket.socket) -> None:
    """In a process of its own: start what is asked, tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, fds = receive(connection)
    child = os.fork()
    if child == 0:
        connection.close()
        run(asked, fds)
    for fd in fds:
        os.close(fd)
    connection.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def main(path: str, bare: str) -> None:
    """Serve until standard input closes."""
    libraries()
    gc.freeze()
    if os.fork() == 0:
        sys.path.insert(0, str(ROOT))
        house()
    else:
        path = bare
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that serve
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([server, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = server.accept()
        if os.fork() == 0:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
                signal.signal(number, signal.SIG_DFL)  # whatever ran the tests ignored
            server.close()
            serve(connection)
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
