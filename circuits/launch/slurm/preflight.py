"""What Slurm, or the cluster's preset, would refuse: found before anything is queued, all at once, one line each."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from circuits import slurm_commands as commands
from circuits import words
from circuits.errors import UserError
from circuits.launch import memory
from circuits.launch.plan import Element
from circuits.launch.slurm.request import Request, clock, minutes, missing_personal, secret_environment
from circuits.run import private
from circuits.schema import BaseConfig, DataSource, QueueConfig
from circuits.store import registry

NEEDED = "this launcher needs that option itself; leave it out"
_SIZE = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)
#: Options of sbatch on which the launcher's own record of a job rests, or which would keep it from coming back; their letters.
OURS = (
    "comment",
    "array",
    "hold",
    "output",
    "error",
    "chdir",
    "parsable",
    "wrap",
    "no-requeue",
    "signal",
    "wait",
    "test-only",
)
LETTERS = "aHoeDW"


def ours(option: str) -> bool:
    """Whether an option of sbatch, however it is spelled (``--comment x``, ``--comm=x``, ``-a0-9``), sets one of `OURS`."""
    for (
        word
    ) in option.split():  # sbatch splits a line of its script into words: a second option may hide behind the first
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--") and name and any(whole.startswith(name) for whole in OURS):
            return True
        if word.startswith("-") and not word.startswith("--") and word[1:2] and word[1] in LETTERS:
            return True
    return False


def secret_findings(cfg: BaseConfig, launcher: Mapping[str, Any]) -> list[str]:
    """Lines that go into the job's script as they are and hold a secret; secrets that are not known any more."""
    lines = [("cluster.setup", line) for line in cfg.cluster.setup]
    lines += [("cluster.sbatch", line) for line in cfg.cluster.sbatch]
    lines += [("hydra.launcher.setup", str(line)) for line in launcher.get("setup") or []]
    found = [
        f"{key}: {shown} would stand in the job's script; export it in your shell, or set cluster.environment.NAME=…: both reach "
        "the job and are written nowhere"
        for key, line in lines
        if (shown := private.hide(line)) != line
    ]
    try:
        secret_environment(cfg)
    except UserError as e:
        found += e.messages
    return found


def local_findings(
    elements: Sequence[Element], requests: Mapping[int, Request], launcher: Mapping[str, Any]
) -> list[str]:
    """What can be said without the cluster: personal values, times and sizes as written, the preset's own limits."""
    found: list[str] = []
    for element in elements:
        cfg = element.cfg
        found += missing_personal(cfg, launcher)
        request = requests.get(element.index)
        if request is None:
            continue
        queue = cfg.cluster.gpu if request.gpus else cfg.cluster.cpu
        if request.minutes * 60 <= request.signal_s:
            found.append(
                f"task.resources.time={request.time}: shorter than cluster.signal_s={request.signal_s}, the seconds "
                "before the limit at which a run saves; raise the time or lower that"
            )
        limit, whose = limit_of(queue, request.account)
        if limit and request.minutes > minutes(limit):
            found.append(
                f"task.resources.time={clock(request.minutes)}: {cfg.cluster.name} takes at most {limit}{whose}"
            )
        found += _fits(element, request, queue.gpu_memory)
        found += _weights(element) + _dataset(element)
    for name in launcher.get("additional_parameters", {}):
        if ours(f"--{name.replace('_', '-')}"):
            found.append(f"hydra.launcher.additional_parameters.{name}: {NEEDED}")
    return list(dict.fromkeys(found))


def memory_findings(packs: Sequence[Sequence[Element]], requests: Mapping[int, Request]) -> list[str]:
    """Elements of one process that do not fit what the request and the preset give it."""
    found = [line for pack in packs for line in memory.problems(pack, _room(pack[0], requests[pack[0].index]))]
    return list(dict.fromkeys(found))


def _room(element: Element, request: Request) -> memory.Room:
    """What the request and the preset give a process."""
    gpu_memory = element.cfg.cluster.gpu.gpu_memory
    main = f"task.resources.memory={request.memory}"
    if not request.gpus:
        return memory.Room(None, size(request.memory), main_called=main)
    gpu = size(gpu_memory) if gpu_memory else 1 << 62
    return memory.Room(gpu, size(request.memory), f"a GPU of {element.cfg.cluster.name} has {gpu_memory}", main)


def limit_of(queue: QueueConfig, account: str | None) -> tuple[str | None, str]:
    """The longest job that a queue takes under an account, and for whom that is."""
    for pattern, limit in queue.max_time_of.items():
        if account and fnmatch.fnmatchcase(account.lower(), pattern.lower()):
            return limit, f" under account {account}"
    return queue.max_time, ""


def place_findings(cfg: BaseConfig, single: bool) -> list[str]:
    """A folder that the job's script or Slurm's pattern for its output cannot name."""
    key, place = ("outputs", cfg.outputs) if single else ("multirun", cfg.multirun)
    bad = next((sign for sign in place if ord(sign) < 32 or sign in "\\\x7f"), None)
    if bad is None:
        return []
    what = {"\t": "tab", "\n": "line end", "\\": "backslash"}.get(bad, "control character")
    return [
        f"{key}={words.visible(place)}: Slurm takes no path with a {what} in it; choose another folder with {key}=DIR"
    ]


def written_findings(elements: Sequence[Element]) -> list[str]:
    """Times and sizes that are none, folders that cannot be named."""
    found = place_findings(elements[0].cfg, len(elements) == 1)
    for element in elements:
        need = element.cfg.task.resources
        try:
            if minutes(need.time) < 1:
                raise ValueError
        except ValueError:
            found.append(f"task.resources.time={need.time}: no time; write minutes (90), HH:MM:SS or D-HH:MM:SS")
        if _SIZE.fullmatch(need.memory) is None:
            found.append(f"task.resources.memory={need.memory}: no size; write whole megabytes or gigabytes: 500M, 32G")
        for option in element.cfg.cluster.sbatch:
            if ours(option):
                found.append(f"cluster.sbatch={option}: {NEEDED}")
        if need.gpus < 0:
            found.append(f"task.resources.gpus={need.gpus}: 0 or more")
        for queue in ("gpu", "cpu"):
            limits: QueueConfig = getattr(element.cfg.cluster, queue)
            for limit in (limits.max_time or "1", *limits.max_time_of.values()):
                try:
                    minutes(limit)
                except ValueError:
                    found.append(f"cluster.{queue}.max_time={limit}: no time; write HH:MM:SS")
    return list(dict.fromkeys(found))


def cluster_findings(cluster: str, requests: Mapping[int, Request]) -> list[str]:
    """What the cluster itself would refuse: partition, time, GPUs, account, array size."""
    if not commands.present():
        return [
            f"cluster={cluster}: sbatch is not on this machine; run the same command on the cluster's login node, or cluster=local"
        ]
    found = []
    partitions = commands.partitions()
    accounts = commands.accounts()
    for request in dict.fromkeys(requests.values()):
        default = [partition.name for partition in partitions.values() if partition.default]
        for name in request.partition.split(",") if request.partition is not None else default:
            found += _partition(name, request, partitions)
        if request.account and accounts is not None and request.account.lower() not in accounts:
            yours = " ".join(sorted(accounts))
            found.append(f"account {request.account}: you cannot charge it on {cluster}; yours: {yours}")
    return list(dict.fromkeys(found))


def _partition(name: str, request: Request, partitions: Mapping[str, commands.Partition]) -> list[str]:
    from circuits.errors import suggest

    known = partitions.get(name)
    if known is None:
        return [f"partition {name}: no such partition" + suggest(name, partitions, "partitions")]
    found = []
    if known.limit not in ("infinite", "n/a") and request.minutes > minutes(known.limit):
        found.append(f"task.resources.time={request.time}: partition {name} takes at most {known.limit}")
    if request.gpus and "gpu" not in known.gres:
        with_gpus = " ".join(sorted(p.name for p in partitions.values() if "gpu" in p.gres)) or "none"
        found.append(
            f"partition {name} has no GPUs, and task.resources.gpus={request.gpus}; partitions with GPUs: {with_gpus}"
        )
    return found


def _fits(element: Element, request: Request, gpu_memory: str | None) -> list[str]:
    """Whether the weights alone fit one GPU of the preset; activations and SAEs come on top."""
    if not gpu_memory or not request.gpus or element.cfg.model.embedded is not None:
        return []
    from circuits.models.identify import parameters

    count = parameters(element.cfg.model.id, element.cfg.model.revision)
    if count is None:
        return []
    width = 4 if element.cfg.precision.dtype.value == "fp32" else 2
    needed, has = count * width, size(gpu_memory)
    if needed <= has:
        return []
    return [
        f"model={element.cfg.model.id}: its weights take {words.size(needed)} in {element.cfg.precision.dtype.value} and a GPU of "
        f"{element.cfg.cluster.name} has {gpu_memory}; use precision=bf16 or a smaller model"
    ]


def _weights(element: Element) -> list[str]:
    """Nodes without a network need the model in the cache. A directory has its own, looked at with every element's config."""
    from circuits.models.identify import cached_weights, directory_of

    model = element.cfg.model
    if not element.cfg.cluster.offline or model.embedded is not None or directory_of(model.id) is not None:
        return []

    if cached_weights(model.id, model.revision):
        return []
    name = element.cfg.cluster.name
    return [
        f"model={model.id}: its weights are not in the cache and the nodes of {name} reach no network; first: "
        f"python launch.py task=prefetch model={model.id} cluster={name}"
    ]


def _dataset(element: Element) -> list[str]:
    """The same of a dataset on the hub."""
    from circuits.data import hub
    from circuits.data.corpora import find_corpus

    data, name = element.cfg.data, element.cfg.cluster.name
    if not element.cfg.cluster.offline or data.source is not DataSource.datasets or data.path is None:
        return []
    if "data" not in registry.reads(element.cfg.task.name):
        return []
    found = find_corpus(data.source.value, data.path, data.split).hub
    if found is None or hub.cached_dataset(found) is not None:
        return []
    return [
        f"data.path={found}: it is not in the cache and the nodes of {name} reach no network; first: "
        f"python launch.py task=prefetch data=datasets data.path={found} cluster={name}"
    ]


def size(text: str) -> int:
    """Bytes of ``80G``."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match[1]) * {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}[match[2].upper()]
