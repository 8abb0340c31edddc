"""``task=smoke``: what is here is said to be here, what is asked for and absent is named with what mends it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from configs import compose
from conftest import Cli
from test_family_runs import save
from test_load import make

from circuits.errors import RunError, UserError
from circuits.tasks import smoke

Lines = dict[str, tuple[str, str]]


@pytest.fixture
def look(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lines]:
    """The lines of ``task=smoke``: state and detail of each check. No hub, no W&B account."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def run(*words: str, absent: tuple[str, ...] = ()) -> Lines:
        cfg = compose("task=smoke", f"outputs={tmp_path}/outputs", *words)
        if absent:
            with pytest.raises(RunError, match=f"^absent: {', '.join(absent)} ") as caught:
                smoke.run(cfg)
            assert caught.value.exit_code == 1
        else:
            assert smoke.run(cfg) == 0
        rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
        found = {row[0]: (row[1], row[2].strip()) for row in rows if len(row) == 3 and row[1] in ("ok", "absent", "-")}
        assert {name for name, (state, _) in found.items() if state == "absent"} == set(absent)
        return found

    return run


def test_a_plain_machine_has_what_a_plain_run_needs(cli: Cli) -> None:
    done = cli("task=smoke")
    assert done.code == 0 and not done.err
    states = {line.split()[0]: line.split()[1] for line in done.out.splitlines()}
    for what in ("versions", "device", "dtypes", "forward", "model", "store", "tracking", "cluster"):
        assert states[what] == "ok"
    assert "8 sites captured in 2 layers, logits unchanged" in done.out and "free before  free after" in done.out
    assert "host memory" in done.out and done.out.rstrip().endswith("everything that was asked for is here")
    assert list(cli.folder.iterdir()) == [], "it leaves nothing behind"


def test_a_device_that_is_asked_for_and_absent_fails(look) -> None:
    lines = look("model.device=cuda:99", absent=("device",))
    assert "'cuda:99' is not present; this machine has:" in lines["device"][1]
    assert lines["forward"][0] == "ok", "the other checks are still made"
    assert "(asked for: cuda:99)" in look("model.device=cuda:99", "model.allow_fallback=true")["device"][1]
    with pytest.raises(UserError, match=r"model\.device=gpu: no such device; choices: auto cpu cuda"):
        look("model.device=gpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "tf32"])
def test_the_pass_runs_in_the_number_format_asked_for(look, precision: str) -> None:
    lines = look("model.device=cpu", f"precision={precision}")
    assert f"{'fp32' if precision == 'tf32' else precision} asked for" in lines["dtypes"][1]


def test_a_model_is_here_or_named_with_the_command_that_fetches_it(look, tmp_path: Path) -> None:
    lines = look("model=gemma-3-4b-it", "precision=fp16", absent=("dtypes", "model"))
    assert "activations of gemma3 exceed float16's largest number" in lines["dtypes"][1]
    assert "run: python launch.py task=prefetch model=google/gemma-3-4b-it" in lines["model"][1]
    made = make(tmp_path / "model", "gpt2")
    assert look(f"model={made}")["model"][1].endswith("gpt2, 2 layers of 16")
    gemma = save("gemma3_text", tmp_path / "gemma")
    assert "exceed float16's" in look(f"model={gemma}", "precision=fp16", absent=("model",))["model"][1]
    (made / "model.safetensors").write_bytes(b"cut")
    assert "truncated or damaged" in look(f"model={made}", absent=("model",))["model"][1]


def test_a_store_that_cannot_be_written_fails(look) -> None:
    assert "choose another place with outputs=DIR" in look("outputs=/proc/nowhere", absent=("store",))["store"][1]


class Answering(BaseHTTPRequestHandler):
    """A W&B server that takes one key."""

    def do_POST(self) -> None:
        """Say whether it is that key."""
        given = self.headers["Authorization"] == f"Basic {base64.b64encode(b'api:secret').decode()}"
        self.send_response(200 if given else 401)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_online_tracking_needs_a_key_and_a_server(look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert look("tracking=off")["tracking"][0] == "-"
    assert "run wandb login" in look("tracking.mode=online", absent=("tracking",))["tracking"][1]
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in look("tracking.mode=online", absent=("tracking",))["tracking"][1]
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        assert look("tracking.mode=online")["tracking"][0] == "ok"
        monkeypatch.setenv("WANDB_API_KEY", "wrong")
        assert "refuses the key (401)" in look("tracking.mode=online", absent=("tracking",))["tracking"][1]
        server.shutdown()


def test_a_cluster_needs_its_commands_and_a_controller_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}")
    line = smoke.scheduler("csd3")
    assert (
        line.state == "absent" and "cluster=csd3: no command sbatch squeue sacct scancel scontrol here" in line.detail
    )
    says = {"UP": "ok", "DOWN": "absent"}
    for state, expected in says.items():
        for name in smoke.SCHEDULER:
            (commands / name).write_text(f"#!/bin/sh\necho 'Slurmctld(primary) at host is {state}'\n")
            (commands / name).chmod(0o755)
        line = smoke.scheduler("csd3")
        assert line.state == expected and f"Slurmctld(primary) at host is {state}" in line.detail


def test_what_a_broken_installation_raises_is_a_finding_and_no_traceback(look, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file\nmore")

    monkeypatch.setattr("circuits.tiny.selfcheck.check_pass", broken)
    lines = look(absent=("forward",))
    assert lines["forward"][1] == "ImportError: libcudart.so.12: cannot open shared object file"
