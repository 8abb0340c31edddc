"""``cluster.allocation=true``: a whole sweep or study inside one job, run there as on any machine of one's own.

For clusters that count jobs, and for many short stages. The job asks for what ``cluster.parallelism`` elements need at a time (one,
where it is not given), for as long as its queue allows or ``hydra.launcher.timeout_min`` says. When its time is nearly up, all that
runs is saved and the job is queued again; what is done is cached, what was begun goes on. The node runs
``python -m circuits.launch.slurm.inside DIR``.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from circuits import slurm_commands as commands
from circuits.console import console
from circuits.files import disk_errors, write_json
from circuits.launch import terminal
from circuits.launch.plan import Plan
from circuits.launch.slurm import script
from circuits.launch.slurm.preflight import limit_of, size
from circuits.launch.slurm.request import Request, cluster_environment, minutes, request_of, secret_environment
from circuits.launch.slurm.submission import RECORD
from circuits.launch.sweep import Sweep, relaunched
from circuits.run import config, status
from circuits.store.places import CODE


def submit(sweep: Sweep, plan: Plan, launcher: Mapping[str, Any]) -> Callable[[], int]:
    """Submit one job for all elements of `plan`."""
    cfg, folder = plan.cfg, sweep.path / "slurm"
    request = whole(plan, launcher)
    plain = re.sub(r"[^ -~]", "_", sweep.id)
    array = script.Array(
        request,
        (),
        folder,
        f"circuits:{plain[:80]}:{secrets.token_hex(4)}",
        cfg.cluster.python or sys.executable,
        CODE,
        [*cfg.cluster.setup, *script.modules(cfg.cluster, request)],
        cluster_environment(cfg),
        cluster=commands.cluster(),
    )
    os.environ.update(secret_environment(cfg))
    text = array.inside(sweep.path)
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        (folder / "allocation.sh").write_text(text, encoding="utf-8")
    commands.check_fits(text)
    job = commands.submit(text, console().tell)
    facts = {"tag": array.tag, "cluster": array.cluster, "submitted": status.now(), "allocation": job}
    write_json(sweep.path / RECORD, {**facts, "arrays": [], "earlier": [], "claims": {}})
    sweep.record["launcher"]["backend"] = (
        cfg.cluster.backend.value
    )  # the last job of a sweep that is recovered made it its own
    relaunched(sweep)
    view = terminal.View(sweep, plan.elements)
    view.title(plan.standing, f"{cfg.cluster.name} ({request.shown}), all in one job", "already queued")
    view.say(f"submitted {job}      {terminal.relative(sweep.path)}")
    view.say(f"follow    python launch.py task=status of={sweep.id} status.watch=true")
    view.say(f"cancel    scancel {job}")
    return lambda: 0


def whole(plan: Plan, launcher: Mapping[str, Any]) -> Request:
    """What the one job asks for: the most that an element asks for, times the elements at a time; the queue's longest time."""
    at_once = plan.cfg.cluster.parallelism or 1
    asked = [request_of(element.cfg, {}) for element in plan.standing.to_run]
    most = max(asked, key=lambda request: (request.gpus, request.cpus))
    gpus, cpus = max(r.gpus for r in asked) * at_once, max(r.cpus for r in asked) * at_once
    memory = max(size(r.memory) for r in asked) * at_once
    queue = plan.cfg.cluster.gpu if gpus else plan.cfg.cluster.cpu
    limit = limit_of(queue, most.account)[0]
    time = minutes(limit) if limit else max(r.minutes for r in asked)
    cfg = config.copied(plan.cfg)
    cfg.task.resources = replace(
        cfg.task.resources, gpus=gpus, cpus=cpus, memory=f"{-(-memory // (1 << 20))}M", time=str(time)
    )
    request = request_of(cfg, launcher)
    return replace(request, name="circuits-allocation", parallelism=None)
