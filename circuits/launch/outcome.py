"""How a sweep ended, in lines: what failed and why (equal reasons once), what a gate refused, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.console import relative
from circuits.state import State, state_of
from circuits.store.layers import ranges
from circuits.store.places import LOG
from circuits.words import visible

Ended = tuple[int, str, Path, Mapping[str, Any]]  # an element's number, its label, its directory, its facts


def summary_lines(states: Sequence[Ended]) -> list[tuple[bool, str]]:
    """What to print, and whether it belongs to standard error (what went wrong, and where); nothing where all went well."""
    gates = [one for one in states if state_of(one[3]) is State.gate]
    failed = [one for one in states if state_of(one[3]).badly]
    if not gates and not failed:
        return []
    kept = sum(state_of(one[3]).well for one in states)
    several = len(states) > 1
    lines = [(False, _counted(len(states), len(failed), len(gates), kept))] if several else []
    for reason, group in _by_reason([*failed, *gates]):
        lines += [(True, line) for line in _told(reason, group, several)]
    wrong = [one for one in failed if one[3].get("wrong_input")]
    if again := len(failed) - len(wrong):
        lines.append((False, f"again: the same command ({kept} answer from the store, {again} resume)"))
    if wrong and several:
        lines.append(
            (False, f"{len(wrong)} failed of what was given: mend that first, or the same command ends the same way")
        )
    return [(to_error, visible(line)) for to_error, line in lines]


def _counted(total: int, failed: int, gates: int, kept: int) -> str:
    """``3 of 10 failed, 2 stopped at a gate (5 done, kept):``; a gate that said no is no failure: it has measured."""
    parts = [f"{failed} of {total} failed"] if failed else []
    parts += [f"{gates}{'' if failed else f' of {total}'} stopped at a gate"] if gates else []
    return f"{', '.join(parts)} ({kept} done, kept):"


def _by_reason(ended: Sequence[Ended]) -> list[tuple[str, list[Ended]]]:
    found: dict[str, list[Ended]] = {}
    for one in ended:
        found.setdefault(str(one[3].get("error") or one[3].get("state")), []).append(one)
    return list(found.items())


def _told(reason: str, group: Sequence[Ended], several: bool) -> list[str]:
    """A reason, whose it is, and where the log is; findings on a line each."""
    number, label, directory, facts = group[0]
    lines = [line.strip() for line in reason.splitlines() if line.strip()] or [reason]
    measured = state_of(facts) is State.gate and facts.get("artifacts")  # nothing in the log that is not here
    log = "" if measured else f"     log {relative(directory / LOG)}"
    if len(group) > 1:
        log += f" and {len(group) - 1} more" if log else ""
        who = f"  {ranges([one[0] for one in group])}  "
    else:
        who = f"  {number}  {label}  "
    if not several:
        who = "error: "
    rest = [f"{' ' * len(who) if several else who}{line}" for line in lines[1:]]
    told = [f"{who}{lines[0]}", *rest]
    told[-1] += log
    return told
