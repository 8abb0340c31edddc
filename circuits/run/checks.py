"""The questions of the checklist, one function each, in the order in which they are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from circuits.run.evidence import Answer, Sweep, named, unless
from circuits.state import State

HASH = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r".+@[0-9a-f]{40}")
Question = Callable[[Sweep], Answer]
QUESTIONS: list[tuple[str, str, Question]] = []
"""Name, title and function of each."""


def _item(title: str) -> Callable[[Question], Question]:
    def register(ask: Question) -> Question:
        QUESTIONS.append((ask.__name__, title, ask))  # type: ignore[attr-defined]
        return ask

    return register


# -- code and libraries ----------------------------------------------------------------------------------------------


@_item("Code committed")
def code(sweep: Sweep) -> Answer:
    """Every artifact was made by a commit, with nothing beside it."""
    found = {id: m.get("code") or {} for id, m in sweep.manifests.items()}
    if without := [id for id, facts in found.items() if not facts.get("commit")]:
        return False, f"no commit is known of {named(without)}: run from a git checkout"
    if dirty := [id for id, facts in found.items() if facts.get("dirty")]:
        return False, f"made with uncommitted changes: {named(dirty)}"
    commits = sorted({str(facts["commit"])[:12] for facts in found.values()})
    return True, f"commit {', '.join(commits)}"


@_item("One version of the code")
def one_code(sweep: Sweep) -> Answer:
    """All artifacts were made by equal code."""
    hashes = {
        str((m.get("code") or {}).get("hash") or (m.get("code") or {}).get("commit")) for m in sweep.manifests.values()
    }
    if len(hashes) == 1:
        return True, f"code {hashes.pop()[:12]}"
    return False, f"artifacts were made by {len(hashes)} versions of the code ({named(one[:12] for one in hashes)})"


@_item("Packages as locked")
def packages(sweep: Sweep) -> Answer:
    """Package versions are recorded, and are those of the lock file."""
    recorded = {id: env.get("packages") or {} for id, env in sweep.environments().items()}
    if without := [id for id, found in recorded.items() if not found]:
        return False, f"no versions are recorded of {named(without)}"
    if sweep.locked is None:
        return False, "there is no requirements.lock to compare with"
    wrong: dict[str, str] = {}
    for found in recorded.values():
        for name, version in found.items():
            pinned = sweep.locked.get(canonical(name))
            if pinned is not None and version.partition("+")[0] != pinned.partition("+")[0]:
                wrong[name] = f"{name} {version} (locked: {pinned})"
    count = len({name for found in recorded.values() for name in found})
    return unless(
        wrong.values(), f"{count} packages, as requirements.lock has them", "other versions than requirements.lock has"
    )


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@_item("Environment modules recorded")
def modules(sweep: Sweep) -> Answer:
    """``module list``, where there is such a thing."""
    found = [env["modules"] for env in sweep.environments().values() if env.get("modules")]
    if not found:
        return None, "no environment modules were loaded"
    return True, f"{len({tuple(one) for one in found})} list(s), of {max(map(len, found))} modules"


# -- what went in ----------------------------------------------------------------------------------------------------


@_item("Model pinned")
def model(sweep: Sweep) -> Answer:
    """By the commit on the hub, by the content of its files, or by the seed that it is trained from."""
    ids = {
        id: (p["config"].get("model") or {}).get("id") for id, p in sweep.payloads().items() if p["config"].get("model")
    }
    if not ids:
        return None, "no model was read"
    loose = [
        id for id, given in ids.items() if given != "embedded" and not (COMMIT.fullmatch(str(given)) or _hashed(given))
    ]
    known = {
        "the embedded model, trained from its seed" if one == "embedded" else str(one)[:80] for one in ids.values()
    }
    return unless(loose, named(known), "neither a commit nor a content hash")


def _hashed(value: Any) -> bool:
    return HASH.search(json.dumps(value)) is not None


@_item("Seeds recorded")
def seeds(sweep: Sweep) -> Answer:
    """Each element's config has its seed."""
    lacking = [one.name for one in sweep.elements if not isinstance(one.config.get("seed"), int)]
    values = sorted({one.config["seed"] for one in sweep.elements if isinstance(one.config.get("seed"), int)})
    return unless(
        lacking, f"seed {', '.join(map(str, values[:8]))}{' …' if len(values) > 8 else ''}", "no seed in the config of"
    )


@_item("Inputs named by content")
def inputs(sweep: Sweep) -> Answer:
    """Every artifact says the content hash of each artifact that it was made from."""
    found = {(id, name): facts for id, m in sweep.manifests.items() for name, facts in (m.get("inputs") or {}).items()}
    if not found:
        return None, "nothing was made from other artifacts"
    lacking = [f"{name} of {id}" for (id, name), facts in found.items() if not facts.get("content")]
    return unless(lacking, f"{len(found)} inputs, each with its hash", "without a content hash")


@_item("Data named by content")
def data(sweep: Sweep) -> Answer:
    """Texts and prompts enter by the hash of their content, or come from a generator whose version enters."""
    loose, known = [], set()
    for id, payload in sweep.payloads().items():
        config, extra = payload["config"], payload.get("extra") or {}
        path = (config.get("data") or {}).get("path")
        tokens = (sweep.manifests[id].get("inputs") or {}).get("tokens") or {}
        prompts = config.get("behaviour") or {}
        if path is not None:
            known.add("the text's hash")
            loose += [] if _hashed(path) or tokens.get("content") else [id]
        elif "mixture" in extra:
            known.add("the generator's version and seed")
        if prompts.get("path") is not None:
            known.add("the prompt file's hash")
            loose += [] if _hashed(prompts["path"]) else [id]
        elif "generator" in extra:
            known.add("the prompt generator's version and seed")
    if not known:
        return None, "no data of its own was read: all of it came with the inputs"
    return unless(loose, named(known), "a name and no content hash")


@_item("Precision recorded")
def precision(sweep: Sweep) -> Answer:
    """Number format and matmul setting (TF32) are part of what decides a result."""
    found = {id: payload["config"].get("precision") for id, payload in sweep.payloads().items()}
    used = {id: given for id, given in found.items() if given}
    if not used:
        return None, "no model computed"
    known = {f"{given.get('dtype')}, matmul {given.get('matmul')}" for given in used.values()}
    tf32 = {"TF32 off" if given.get("matmul") == "highest" else "TF32 allowed" for given in used.values()}
    return True, f"{named(known)} ({named(tf32)})"


# -- where it was made -----------------------------------------------------------------------------------------------


@_item("Hardware recorded")
def hardware(sweep: Sweep) -> Answer:
    """The GPU's name, memory and driver; without one, the processor."""
    lacking, known = [], set()
    for id, env in sweep.environments().items():
        for gpu in env.get("gpu") or []:
            known.add(
                f"{gpu.get('name')}, {round((gpu.get('memory_bytes') or 0) / 1e9)} GB, driver {gpu.get('driver')}"
            )
            lacking += [] if all(gpu.get(part) for part in ("name", "memory_bytes", "driver")) else [id]
        if not env.get("gpu"):
            known.add(f"{env.get('cpu')} (no GPU)")
            lacking += [] if env.get("cpu") else [id]
    return unless(dict.fromkeys(lacking), named(known), "not all of name, memory and driver")


@_item("Determinism recorded")
def determinism(sweep: Sweep) -> Answer:
    """Threads and device, on which bit-identity hangs, and whether torch was told to be deterministic."""
    lacking = [id for id, env in sweep.environments().items() if not env.get("threads")]
    threads = {int(env["threads"]) for env in sweep.environments().values() if env.get("threads")}
    told = any(env.get("deterministic") for env in sweep.environments().values())
    gpu = any(env.get("gpu") for env in sweep.environments().values())
    exact = "repeats bit by bit" if told or not gpu else "the GPU's last bits may differ from run to run"
    return unless(lacking, f"threads: {named(map(str, threads))}; {exact}", "threads are not recorded of")


@_item("Job ids and scripts kept")
def scheduler(sweep: Sweep) -> Answer:
    """Of a sweep on a cluster: each element's job, and the script as it was submitted."""
    if not sweep.scheduler:
        return None, "no scheduler ran it"
    lacking = [one.name for one in sweep.ran if not one.status.get("job")]
    if not sweep.scripts:
        return False, "the job script is not kept with the sweep"
    return unless(lacking, f"{sweep.scripts} script(s), a job id for each element", "no job id is known of")


@_item("Time and memory recorded")
def costs(sweep: Sweep) -> Answer:
    """Wall time and peak memory of every element that ran."""
    if not sweep.ran:
        return None, "everything answered from the store"
    lacking = [
        one.name for one in sweep.ran if not (one.provenance.get("wall_s") and one.provenance.get("peak_rss_bytes"))
    ]
    return unless(lacking, f"{len(sweep.ran)} elements, each with both", "not of")


# -- how it ended ----------------------------------------------------------------------------------------------------


@_item("Everything finished")
def finished(sweep: Sweep) -> Answer:
    """No element failed or still runs."""
    lacking = [f"{one.name} ({one.state})" for one in sweep.elements if not one.state.measured]
    return unless(lacking, f"{len(sweep.elements)} of {len(sweep.elements)} elements", "not finished")


@_item("Failures explained")
def failures(sweep: Sweep) -> Answer:
    """What failed says why."""
    failed = [one for one in sweep.elements if one.state.badly]
    if not failed:
        return None, "nothing failed"
    lacking = [one.name for one in failed if not one.status.get("error")]
    return unless(lacking, f"{len(failed)} failed, each with its reason", "no reason is known of")


@_item("Gates held")
def gates(sweep: Sweep) -> Answer:
    """No measurement stayed below its gate."""
    below = [one.name for one in sweep.elements if one.state is State.gate]
    return unless(below, "no gate said no", "a gate said no")


@_item("Nothing forced")
def tainted(sweep: Sweep) -> Answer:
    """No artifact, nor what it stands on, was made past a gate by ``force=true``."""
    return unless(
        (id for id, m in sweep.manifests.items() if m.get("tainted")), "no artifact is tainted", "made past a gate"
    )


@_item("Raw results kept")
def kept(sweep: Sweep) -> Answer:
    """Every artifact is there, with the hash of each of its files."""
    gone = [id for one in sweep.elements for id, m in one.manifests.items() if m is None]
    if gone:
        return False, f"not in the store: {named(gone)}"
    bare = [
        id
        for id, m in sweep.manifests.items()
        if not all(f.get("sha256") for f in (m.get("files") or {"": {}}).values())
    ]
    count = sum(len(m.get("files") or {}) for m in sweep.manifests.values())
    return unless(bare, f"{len(sweep.manifests)} artifacts, {count} files with their hashes", "files without a hash")
