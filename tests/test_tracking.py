"""Weights & Biases beside a run: what is in its files, and that neither its absence nor its silence costs the run anything."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from configs import compose
from conftest import QUICK, ROOT, Cli
from prompt_sets import animals, bpe, save_model, write_jsonl

from circuits.run import tracked, tracking, wandb_runs, wandb_server
from circuits.run.tracking import Tracker
from circuits.schema import TrackingConfig, TrackingMode
from circuits.store import inputs, registry

KEY = "0123456789" * 4
SCRIPT = """
import sys, time
from pathlib import Path
from circuits.run import wandb_runs, wandb_server
from circuits.run.tracking import Tracker
from circuits.schema import TrackingConfig, TrackingMode
for setting in sys.argv[3:]:
    name, value = setting.split("=")
    setattr(wandb_server if name in vars(wandb_server) else wandb_runs, name, float(value))
began = time.monotonic()
say = lambda text: print(f"{time.monotonic() - began:.1f} {text}", flush=True)
tracker = Tracker(Path(sys.argv[1]), TrackingConfig(mode=TrackingMode[sys.argv[2]]), "group", ["tag"], say)
for layer in (0, 1):
    tracker.start(layer, f"key{layer}", f"name/L{layer}", {"layer": layer, "lr": 1e-3})
for step in (10, 20, 30):
    for layer in (0, 1):
        tracker.log(step, {"loss": layer + 1 / step}, layer)
say("logged")
for layer in (0, 1):
    tracker.summary({"explained_variance": 0.5 + layer / 10, "site": "resid_post", "interval": [0, 1]}, layer)
tracker.close()
say("closed")
"""


class Ended:
    """A process that tracked two layers, and how it ended."""

    def __init__(self, folder: Path, mode: str, *settings: str, **environment: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and "proxy" not in k.lower()}
        env = {**kept, "PYTHONPATH": str(ROOT), "NETRC": str(folder / "netrc"), **environment}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), mode, *settings], cwd=folder, env=env, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        self.code, self.err = done.returncode, done.stderr
        self.lines = [(float(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in done.stdout.splitlines()]
        self.warnings = [(when, text) for when, text in self.lines if text.startswith("warning")]
        self.hints = [text for _, text in self.lines if "wandb sync" in text]
        self.rows = tracking.read(folder)


def records(file: Path) -> list[Any]:
    """The records of an offline file: LevelDB's log framing around W&B's protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, found, part, at = file.read_bytes(), [], b"", 7  # after the header
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + 7 : at + 7 + length]
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
        at += 7 + length
    return found


def told(file: Path) -> dict[str, Any]:
    """The run, its config, history and summary, as an upload would show them."""
    shown: dict[str, Any] = {"config": {}, "summary": {}, "history": []}

    def put(into: dict[str, Any], items: Any) -> None:
        for item in items:
            into[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)

    for record in records(file):
        if record.HasField("run"):
            shown["run"] = record.run
            put(shown["config"], record.run.config.update)
        elif record.HasField("config"):
            put(shown["config"], record.config.update)
        elif record.HasField("history"):
            row: dict[str, Any] = {}
            put(row, record.history.item)
            shown["history"].append(row)
        elif record.HasField("summary"):
            put(shown["summary"], record.summary.update)
        elif record.HasField("exit"):
            shown["exit"] = record.exit.exit_code
    return shown


def files(folder: Path) -> dict[int, dict[str, Any]]:
    """What the offline files of a folder tell, by layer."""
    found = [told(file) for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]
    return {one["config"]["layer"]: one for one in found}


@contextlib.contextmanager
def server(*, status: int | None, first: int = 0) -> Iterator[str]:
    """A real HTTP server that answers `status`, or (None) never; its first `first` answers are 200."""
    stop, count = threading.Event(), [0]

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            count[0] += 1
            code = 200 if count[0] <= first else status
            if code is None:
                stop.wait(60)
                return
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        stop.set()
        http.shutdown()
        http.server_close()


def check_whole(folder: Path, ended: Ended) -> None:
    """Nothing was lost: all rows here, config, history and summary in the offline files."""
    assert ended.code == 0, ended.err
    assert [(row["step"], row["layer"]) for row in ended.rows] == [(s, layer) for s in (10, 20, 30) for layer in (0, 1)]
    runs = files(folder)
    assert set(runs) == {0, 1}
    for layer, one in runs.items():
        assert (
            one["run"].display_name == f"name/L{layer}"
            and one["run"].run_group == "group"
            and list(one["run"].tags) == ["tag"]
        )
        assert one["config"]["lr"] == 1e-3
        steps = {row["global_step"]: row["loss"] for row in one["history"] if "loss" in row}
        assert steps == {s: layer + 1 / s for s in (10, 20, 30)}
        assert one["summary"]["explained_variance"] == 0.5 + layer / 10 and one["summary"]["site"] == "resid_post"
        assert one["exit"] == 0
    assert len(ended.hints) == 1 and "wandb/offline-run-*" in ended.hints[0]


def test_offline_files_hold_config_history_summary_and_the_layers_side_by_side(tmp_path: Path) -> None:
    ended = Ended(tmp_path, "offline")
    check_whole(tmp_path, ended)
    assert not ended.warnings
    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/layers*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["layer", "explained_variance", "site"]
    assert content["data"] == [[0, 0.5, "resid_post"], [1, 0.6, "resid_post"]]


def test_baselines_and_activations_are_told_whole_fresh_or_cached(cli: Cli) -> None:
    save_model(cli.folder / "one", bpe(400))
    write_jsonl(cli.folder / "my.jsonl", animals())
    words = ["model=one", "model.device=cpu", "behaviour=my.jsonl", "behaviour.multi_token=keep", "cluster.workers=0"]
    baseline = [
        "task=baseline",
        *words,
        "behaviour.success_threshold=0",
        "behaviour.min_logit_diff=0,9",
        "baseline.cluster=group",
    ]
    stores = [
        "task=activations",
        *words,
        "layer=0-1",
        "activations.site=[mlp_out,resid_post]",
        "activations.last_n=1",
        "force=true",
    ]
    for run in (
        baseline,
        [*baseline[:-2], "behaviour.min_logit_diff=9", "baseline.cluster=group", "name=again"],
        stores,
    ):
        done = cli(*run)
        assert done.code == 0, done.out + done.err
    both = [told(file) for file in cli.folder.glob("multirun/*/*/*/wandb/offline-run-*/*.wandb")]
    fresh, shared = sorted(both, key=lambda one: one["config"]["behaviour"]["min_logit_diff"])
    assert shared["config"]["cached"] and shared["config"]["swept"] == {"behaviour": {"min_logit_diff": 9}}
    (cached,) = [told(file) for file in cli.folder.glob("outputs/runs/*/again-*/wandb/offline-run-*/*.wandb")]
    listed = {
        path.parents[3].name.partition("-")[0] for path in cli.folder.rglob("offline-run-*/files/requirements.txt")
    }
    assert "activations" in listed and "again" not in listed, "packages that are here made nothing of what was stored"
    assert fresh["config"]["swept"] == {"behaviour": {"min_logit_diff": 0}} and "cached" in cached["run"].tags
    assert fresh["config"]["behaviour"]["min_logit_diff"] == 0 and cached["config"]["behaviour"]["min_logit_diff"] == 9
    for one in (fresh, cached):
        config, summary = one["config"], one["summary"]
        assert config["behaviour"]["path"].endswith("my.jsonl") and config["model"]["id"].endswith("one")
        assert list(one["run"].tags)[:3] == ["baseline", "one", "my"]
        assert 0 <= summary["success_rate"] <= 1 and summary["n"] == 40 and summary["metric"] == "first_token"
        assert [row["logit_diff"] for row in one["history"] if "logit_diff" in row] == [summary["logit_diff"]]
    tables = list(cli.folder.rglob("wandb/offline-run-*/files/media/table/per_prompt*.table.json"))
    assert {len(json.loads(path.read_text())["data"]) for path in tables} == {40} and len(tables) == 3
    runs = [told(file) for file in cli.folder.glob("outputs/runs/*/activations-*/wandb/offline-run-*/*.wandb")]
    assert sorted((one["config"]["layer"], one["config"]["site"]) for one in runs) == [
        (layer, site) for layer in (0, 1) for site in ("mlp_out", "resid_post")
    ]
    assert {tuple(one["run"].tags)[-1] for one in runs} == {"L0", "L1"} and {
        one["summary"]["rows"] for one in runs
    } == {40}
    (table,) = cli.folder.glob("outputs/runs/*/*/wandb/offline-run-*/files/media/table/layers*.table.json")
    assert len(json.loads(table.read_text())["data"]) == 4


def test_every_task_tells_its_whole_config_so_that_runs_are_found_by_what_was_typed(warm: Cli) -> None:
    words = [QUICK, "sae.heldout_sequences=16", "sae.batch_size=64", "sae.block_rows=1024",
             "sae.forward_batch=16", "sae.dead_after=64",
             "seed=3", "cluster.workers=0"]  # fmt: skip
    trained = ["task=sae", "layer=0", "sae=topk,relu", "sae.steps=60", "sae.max_steps=6", "sae.warmup=2", *words]
    shape = ["sae=topk", "sae.steps=60", "sae.max_steps=6", "sae.warmup=2"]
    seen = ["task=interpret", "layer=0", *shape, "behaviour=grammar_agreement",
            "interpret.n_sequences=16", "interpret.max_features=4",
            "behaviour.allow_small=true", *words]  # fmt: skip
    for run in (
        [*trained, "pack=2", "name=first"],
        [*trained, "name=second"],
        seen,
        ["task=prompts", "behaviour=grammar_agreement"],
    ):
        done = warm(*run)
        assert done.code == 0, done.out + done.err
    runs = [told(file) for file in warm.folder.rglob("*.wandb")]
    assert sorted(one["run"].job_type for one in runs) == ["interpret", "prompts", *["sae"] * 4]
    assert {one["run"].run_group for one in runs if one["run"].job_type == "sae"} == {"first", "second"}
    for one in (one for one in runs if one["run"].job_type == "sae"):
        config, name = one["config"], one["config"]["choices"]["sae"]
        assert config["sae"]["architecture"] == name and config["swept"] == {"choices": {"sae": name}}
        assert (config["sae"]["steps"], config["sae"]["max_steps"], one["summary"]["steps"]) == (60, 6, 6)
        assert config["model"]["embedded"]["steps"] == 10 and config["data"]["source"] == "embedded"
        assert config["precision"]["dtype"] == "fp32" and config["seed"] == 3 and config["cluster"] == {"workers": 0}
        assert config["task"] == {"name": "sae"} and config["layer"] == 0 and config["site"] == "resid_post"
        assert config["cached"] == (one["run"].run_group == "second") and "steps" not in config and "user" not in config
        low, high = (one["summary"][f"explained_variance_ci_{end}"] for end in ("low", "high"))
        assert low <= one["summary"]["explained_variance"] <= high
        assert one["run"].display_name.endswith("/L0/resid_post") and set(one["run"].tags) >= {"sae", "tiny", "L0"}
    (fresh,), (again,) = ([one for one in runs if one["run"].run_group == group and one["config"]["choices"]["sae"] == "relu"]
                          for group in ("first", "second"))  # fmt: skip
    kept = ("model", "data", "sae", "precision", "seed", "layer", "site", "swept", "choices", "artifact", "task")
    assert [fresh["config"][key] for key in kept] == [again["config"][key] for key in kept], (
        "fresh or cached: the same config"
    )
    (interpreted,) = (one for one in runs if one["run"].job_type == "interpret")
    assert interpreted["config"]["interpret"]["max_features"] == 4 and interpreted["config"]["sae"]["max_steps"] == 6
    assert (
        interpreted["config"]["behaviour"]["name"] == "grammar_agreement" and interpreted["summary"]["n_features"] == 4
    )
    (prompts,) = (one for one in runs if one["run"].job_type == "prompts")
    assert prompts["config"]["behaviour"]["name"] == "grammar_agreement" and prompts["config"]["model"]["id"] == "tiny"
    assert prompts["summary"]["n_train"] > 0


@pytest.mark.parametrize("name", sorted(registry.kinds()))
def test_every_kind_tells_all_that_it_reads(name: str) -> None:
    """Two runs of any task are told apart by whatever makes their results differ."""
    kind, cfg = registry.kind(name), compose()
    typed = ["seed=3", "model.dtype=fp32", "sae=relu", "cluster.mail=me@here", "user.name=x"]
    told = tracked.settings(kind, cfg, "sweep", typed, ["seed=3"], artifact="a", cached=False)
    for section in inputs.sections(kind, cfg):
        at: Any = told
        for part in section.split("."):
            at = at[part.rstrip("_")]
    assert (
        told["task"] == {"name": cfg.task.name}
        and told["swept"] == {"seed": cfg.seed}
        and told["choices"] == {"sae": "relu"}
    )
    assert "user" not in told and "mail" not in str(told) and tracked.tags(kind, cfg, 3)[0] == name
    json.dumps(told)


def closed_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def test_online_without_a_key_or_a_network_is_offline_with_one_warning(tmp_path: Path) -> None:
    no_key, no_server = tmp_path / "no_key", tmp_path / "no_server"
    no_key.mkdir()
    no_server.mkdir()
    ended = Ended(no_key, "online", WANDB_BASE_URL=closed_port())
    check_whole(no_key, ended)
    ((_, text),) = ended.warnings
    assert "no key for http://127.0.0.1" in text and "wandb login" in text
    (no_server / "netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {KEY}\n")
    ended = Ended(no_server, "online", WANDB_BASE_URL=closed_port())
    check_whole(no_server, ended)
    ((_, text),) = ended.warnings
    assert "cannot be reached" in text and "refused" in text


def test_a_server_that_accepts_and_never_answers_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ended = Ended(tmp_path, "online", WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
    check_whole(tmp_path, ended)
    ((_, text),) = ended.warnings
    assert "did not answer within" in text
    assert ended.lines[0][1] == "logged", "the work did not wait for the answer"
    assert max(wandb_server.CONNECT_S, wandb_server.PROBE_S) < 10


def test_a_server_that_refuses_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, says in ((401, "refuses the key (401)"), (503, "answers 503")):
        with server(status=status) as url:
            assert says in (wandb_server.asked(url, KEY) or "")
    with server(status=404) as url:
        assert wandb_server.asked(url, KEY) is None, "somebody answers: wandb itself decides"


@pytest.mark.soak  # its two seconds are too few on a busy machine
def test_a_server_that_goes_silent_after_the_first_answer_costs_a_bounded_time(tmp_path: Path) -> None:
    with server(status=None, first=1) as url:
        ended = Ended(tmp_path, "online", "INIT_S=2", WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
    check_whole(tmp_path, ended)
    ((_, text),) = ended.warnings
    assert "the server took no run" in text


def test_what_wandb_has_not_finished_in_time_is_left_and_nothing_hangs_at_exit(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ended = Ended(tmp_path, "online", "CLOSE_S=1", WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
    assert ended.code == 0 and len(ended.rows) == 6
    ((_, text),) = ended.warnings
    assert "W&B had not finished after 1 s" in text and "wandb sync" in text
    left = [
        p
        for p in psutil.process_iter(["cmdline"])
        if "wandb-core" in " ".join(p.info["cmdline"] or []) and p.ppid() == 1
    ]
    assert not [p for p in left if p.cwd() == str(tmp_path)], "no service process is left"


def test_a_run_that_fails_marks_its_open_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    said: list[str] = []
    group = "größe" * 60  # W&B takes 128 bytes
    tracker = Tracker(tmp_path, TrackingConfig(mode=TrackingMode.offline), group, [], said.append)
    tracker.start(3, "key", f"{group}/L3", {"layer": 3})
    tracker.log(1, {"loss": 1.0}, 3)
    tracker.close()
    wandb.teardown()  # its service writes the last rows when it ends
    one = files(tmp_path)[3]
    assert one["exit"] == 1 and [row["loss"] for row in one["history"]] == [1.0]
    names = (one["run"].run_group, one["run"].display_name)
    assert names == (wandb_runs.fitting(group), wandb_runs.fitting(f"{group}/L3")) and len(set(names)) == 2
    assert all(len(name.encode()) <= 128 and name.startswith("größe" * 15) for name in names)
    assert wandb_runs.fitting("a" * 128) == "a" * 128
    assert len(said) == 1 and said[0].startswith("W&B is offline; upload with: wandb sync ")


def test_nodes_without_a_network_do_not_ask_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_server, "asked", lambda url, key: None)
    assert str(wandb_server.refusal()).startswith("WANDB_MODE=offline")
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_server.refusal() is None
