"""The command line: normalise, check, hand over to Hydra, and say every error in one line. No torch."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

from circuits.command import overrides
from circuits.errors import CircuitsError, RunError, UserError
from circuits.files import REASONS
from circuits.prose import put
from circuits.run import streams
from circuits.store import places
from circuits.words import one_line

SHOWN = 100  # letters of a name in an error
_exit_code = 0


def main(argv: list[str]) -> int:
    """Run `argv` (without the program's name); the exit code."""
    streams.prepare()
    gc.disable()  # until the work begins: what is composed stays, and looking for circles in it takes a tenth of the time
    try:
        if refused := streams.unreadable([*argv, _here()]):
            raise UserError(refused)
        arguments = overrides.normalise(argv)
        if any(flag in ("--help", "-h") for flag in arguments.flags):
            print(_help(arguments), flush=True)
            return 0
        if any(flag in ("-sc", "--shell-completion") for flag in arguments.flags):
            return _hydra(arguments)
        overrides.check(arguments)
        return _shown(arguments) if arguments.shows_job else _hydra(arguments)
    except CircuitsError as e:
        return _fail(e)
    except KeyboardInterrupt as e:
        print(f"interrupted{f' ({e})' if str(e) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # … | head: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 128 + signal.SIGPIPE
    except (
        OSError
    ) as e:  # a name that is too long, a file where a directory is meant, no permission: wherever it was met
        return _fail(_of_files(e, argv), e)
    except Exception as e:  # a fault of ours
        told = one_line(str(e)) or "no message"
        return _fail(RunError(f"{type(e).__name__}: {told} (a fault of this program; CIRCUITS_DEBUG=1 shows where)"), e)
    finally:
        gc.enable()


def _here() -> str:
    """The working directory.

    Raises:
        UserError: it was removed.
    """
    try:
        return str(Path.cwd())
    except FileNotFoundError as e:
        raise UserError("the working directory was removed; change to another one") from e


def _of_files(error: OSError, argv: list[str]) -> UserError:
    """What the file system refused, of which file, and what named it."""
    reason = REASONS.get(error.errno or 0) or error.strerror or str(error)
    if not isinstance(error.filename, str):
        return UserError(reason)
    name = (
        error.filename if len(error.filename) <= SHOWN else f"{error.filename[:SHOWN]}… ({len(error.filename)} letters)"
    )
    last = Path(error.filename).name
    key = next((word.partition("=")[0] for word in argv if "=" in word and last and last in word), None)
    return UserError(f"{f'{key}: ' if key else ''}{name}: {reason}")


def _help(arguments: overrides.Arguments) -> str:
    """The one screen, or with ``task=X`` that task's options."""
    from circuits.command import help as overview

    tasks = [word.partition("=")[2] for word in arguments.overrides if word.startswith("task=")]
    if not tasks:
        return overview.page()
    from circuits.command import options

    overrides.check(overrides.Arguments(overrides=[f"task={tasks[-1]}"]))
    return options.page(tasks[-1])


def _shown(arguments: overrides.Arguments) -> int:
    """Show the resolved config of one element."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from circuits.command import origins
    from circuits.run import config

    config.register()
    try:
        return origins.show(arguments)
    except (HydraException, OmegaConfBaseException) as e:
        raise UserError(config.one_line(e)) from e


def _hydra(arguments: overrides.Arguments) -> int:
    """Hand over to Hydra; its errors become ours."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from circuits.run import config

    # One place formats all errors, ours: Hydra is asked to let them through.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *arguments.argv()]
    # A stock launcher's job imports us from wherever it starts.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(places.CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
    config.register()
    if arguments.runs and any(word.startswith("hydra/launcher=") for word in arguments.overrides):
        # It unpickles what lies there: nobody else may be able to put anything there.
        folder = Path(overrides.STOCK_FOLDER) / ".submitit"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    try:
        if arguments.runs and not arguments.flags:
            _multirun(arguments.argv()[1:])
        else:
            hydra.main(version_base="1.3", config_path=str(places.CONF), config_name="config")(_launch)()
    except (HydraException, OmegaConfBaseException) as e:
        cause = e.__cause__ if isinstance(e.__cause__, OmegaConfBaseException) else e
        if "requires --multirun" in str(e):
            raise UserError("--cfg shows the config of one element: give one value instead of the sweep") from e
        raise UserError(config.one_line(cause)) from e
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
    return _exit_code


def _multirun(words: list[str]) -> None:
    """What ``hydra.main`` does with ``--multirun`` and these overrides, but for composing everything once more to learn that it
    is one (0.1 s)."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    version.setbase("1.3")
    try:
        main = Hydra.create_main_hydra2("launch", create_config_search_path(str(places.CONF)))
        main.multirun("config", _launch, words)
    finally:
        GlobalHydra.instance().clear()


def _launch(given: Any) -> None:
    """What Hydra is given to run. Our launcher calls it with (compose, overrides of each element, its own keys).

    A stock launcher (``hydra/launcher=submitit_slurm``) calls it with one composed config, in a job of its own.
    """
    global _exit_code
    from circuits.launch import launching

    if isinstance(given, tuple):
        _exit_code = launching.launch(*given)
        return
    code = launching.one_here(given)
    if code:
        sys.exit(code)  # or Slurm would call it completed


def _fail(error: CircuitsError, cause: BaseException | None = None) -> int:
    """Print an error and give its exit code; its traceback (that of its `cause`) only when asked for."""
    if os.environ.get("CIRCUITS_DEBUG"):
        import traceback

        traceback.print_exception(cause or error)
    for message in error.messages if isinstance(error, UserError) else [str(error)]:
        for line in message.splitlines():
            put(f"error: {line}")
    return error.exit_code
