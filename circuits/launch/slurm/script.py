"""The script of one array, as sbatch gets it: submitit's header, our body.

The header is written by submitit's own (private, therefore pinned) script writer. The body runs each element by its own
command, ``python -m circuits.launch.element DIR``, and hands on what Slurm tells the batch shell:

* USR2 (time is nearly up, or the node is wanted) is passed on as soon as the element has a handler for it, whenever it came:
  while Python starts, or later; one that came before, during the set-up, the element finds in its environment;
* TERM is passed on once.

Module loads and the lines of ``cluster.setup`` come before it, and stop the element where one fails. The exit status is the
element's.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from circuits.launch.slurm.request import Request
from circuits.schema import ClusterConfig
from circuits.store.layers import ranges

ELEMENTS = "elements.txt"  # in the sweep's slurm/ folder: line N+1 is the directory of element N
# An array counts from its offset, where a sweep has more elements than a cluster takes numbers.
# A pack's line holds the directories of all its elements, with tabs between them.

ELEMENT = r"""
# element
IFS=$'\t' read -r -a dirs <<<"$(sed -n "$((SLURM_ARRAY_TASK_ID + {first}))p" {elements})"
dir=${dirs[0]:-}
if [ -z "$dir" ] || ! cd "$dir"; then echo "error: element $SLURM_ARRAY_TASK_ID: its directory is gone"; exit 1; fi
exec >>"$dir/run.log" 2>&1 </dev/null
export CIRCUITS_STDOUT_IS_LOG="$dir/run.log"
"""

#: How the line begins that says what of the set-up failed.
SETUP = "set-up on "
CHECKED = r"""
# setup: nothing is built upon a line that failed, by the rules of set -e; what a sourced file does inside is its own business
failed() {
  local code=$?
  [ "${FUNCNAME[1]:-}" = source ] && return
  echo "error: {setup}$(hostname) failed with exit code $code: $step"
  exit 1
}
load_modules() {  # older versions of module complain and return 0
  local said code=0
  said=$(mktemp) || return 1
  module load "$@" 2>"$said" || code=$?
  grep -q ':ERROR:[0-9]' "$said" && code=1
  cat "$said" >&2
  rm -f "$said"
  return $code
}
trap failed ERR
""".replace("{setup}", SETUP)

#: How a child is told: a handler may be a while in coming, and what comes before it must not be lost, nor end the child.
TELL = r"""
listening() {  # does the child handle signal $1? A copy of this shell, forked just now, still has this shell's traps
  [ -r /proc/$child/status ] || return 0
  local name mask heard=0
  while read -r name mask; do
    if [ "$name" = SigCgt: ]; then heard=$((16#$mask >> ($1 - 1) & 1)); fi
  done </proc/$child/status
  [ $heard -eq 1 ] && ! [ /proc/$child/exe -ef /proc/$$/exe ]
}
tell() {  # signal $1, once, as soon as it is heard
  while kill -0 $child; do
    if listening $1; then kill -$1 $child; return; fi
    sleep 0.1
  done
} 2>/dev/null
usr2=$(kill -l USR2) term=$(kill -l TERM)
"""

BODY = r"""
trap - ERR
set -u
( trap '' USR2; CIRCUITS_ASKED=$asked exec {python} -m circuits.launch.element "${dirs[@]}" ) & child=$!
trap '[ -n "$asked" ] || tell $usr2 & asked=1' USR2
[ -z "$asked" ] || tell $usr2 &
trap 'kill -TERM $child 2>/dev/null' TERM
while :; do
  wait $child; code=$?
  kill -0 $child 2>/dev/null || break
done
wait $child 2>/dev/null; again=$?
[ $again -eq 127 ] || code=$again
if [ $code -gt 128 ]; then trap - USR2 TERM; kill -$((code - 128)) $$; fi  # ended by a signal: Slurm is to know which
exit $code
"""


@dataclass(frozen=True)
class Array:
    """One array job to be."""

    request: Request
    elements: tuple[int, ...]  # their original numbers
    folder: Path  # the sweep's slurm/ folder
    tag: str  # of the whole submission, in the job's comment
    python: str
    code: Path  # what is imported on the node
    setup: Sequence[str]
    environment: Mapping[str, str]
    packs: tuple[tuple[int, ...], ...] = ()  # of more than one element; each runs under the number of its first
    cluster: str | None = None  # whose queue holds it, for notes in a store that several clusters share
    offset: int = 0  # the element that runs under number 0

    @property
    def tasks(self) -> list[int]:
        """The array's own numbers."""
        behind = {member for pack in self.packs for member in pack[1:]}
        return [element - self.offset for element in self.elements if element not in behind]

    @property
    def listing(self) -> Path:
        """The file that tells the numbers' directories. Packs have one of their own: recovery forms other packs."""
        return self.folder / (f"packs-{self.tag.rpartition(':')[2]}.txt" if self.packs else ELEMENTS)

    def text(self) -> str:
        """The whole script."""
        lines, setup = self._exported(), self._setup()
        early = ["asked=", "trap 'asked=1' USR2  # before anything that takes time"]
        element = ELEMENT.replace("{elements}", shlex.quote(str(self.listing))).replace("{first}", str(self.offset + 1))
        body = TELL + BODY.replace("{python}", shlex.quote(self.python))
        return "\n".join([header(self), "", *early, element, CHECKED, *setup, *lines, "", "# run"]) + body

    def closing(self, name: str, sweep: Path, jobs: Sequence[str]) -> str:
        """The script of the job that closes a study once all its `jobs` have ended, however they did; `self` is an array of it."""
        request = replace(self.request, name=name, parallelism=None)
        more = {
            "chdir": str(self.folder),
            "output": f"{pattern(str(self.folder))}/closing-%j.out",
            "dependency": f"afterany:{':'.join(jobs)}",
        }
        command = f"exec {shlex.quote(self.python)} -m circuits.launch.slurm.closing {shlex.quote(str(sweep))}"
        return "\n".join(
            [options(request, self.folder, self.tag, more), CHECKED, *self._setup(), *self._exported(), "", command, ""]
        )

    def inside(self, sweep: Path) -> str:
        """The script of one job that runs a whole sweep; `self` is an array of its request."""
        more = {
            "chdir": str(self.folder),
            "output": f"{pattern(str(self.folder))}/allocation-%j.out",
            "open-mode": "append",
            "signal": f"B:USR2@{self.request.signal_s}",
            **dict(self.request.more),
        }
        body = TELL + INSIDE.replace("{python}", shlex.quote(self.python)).replace("{sweep}", shlex.quote(str(sweep)))
        head = options(self.request, self.folder, self.tag, more) + "\n#SBATCH --requeue"
        parts = [head, "", "asked=", "trap 'asked=1' USR2", CHECKED, *self._setup(), *self._exported(), ""]
        return "\n".join(parts) + body.replace("{times}", str(self.request.max_num_timeout))

    def _exported(self) -> list[str]:
        return [f"export {name}={shlex.quote(value)}" for name, value in self._exports().items()]

    def _setup(self) -> list[str]:
        return [
            line
            for words in (*self.setup, *self.request.setup)
            for line in (f"step={shlex.quote(words.replace('load_modules', 'module load', 1))}", words)
        ]

    def _exports(self) -> dict[str, str]:
        return {
            "PYTHONUNBUFFERED": "1",
            "TQDM_DISABLE": "1",
            "GOMP_SPINCOUNT": "10000",
            "CIRCUITS_MAX_TIMEOUTS": str(self.request.max_num_timeout),
            "CIRCUITS_SLURM_TAG": self.tag,
            **({"CIRCUITS_SLURM_CLUSTER": self.cluster} if self.cluster else {}),
            **self.environment,
            "PYTHONPATH": str(self.code),
        }


#: A whole sweep inside one job: its launcher gets TERM when time is nearly up, saves all that runs, and the job is queued again.
INSIDE = r"""
trap - ERR
set -u
( trap '' TERM; exec {python} -m circuits.launch.slurm.inside {sweep} ) & child=$!
trap 'asked=1; tell $term &' USR2
[ -z "$asked" ] || tell $term &
trap 'asked=; tell $term &' TERM
while :; do
  wait $child; code=$?
  kill -0 $child 2>/dev/null || break
done
wait $child 2>/dev/null; again=$?
[ $again -eq 127 ] || code=$again
if [ $code -eq 130 ] && [ -n "$asked" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt {times} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
"""


def modules(cluster: ClusterConfig, request: Request) -> list[str]:
    """The line that loads what a queue's nodes need; none where nothing is."""
    names = [*cluster.modules, *(cluster.gpu if request.gpus else cluster.cpu).modules]
    return [f"load_modules {shlex.join(names)}"] if names else []


def pattern(path: str) -> str:
    """A path inside one of sbatch's file name patterns, where ``%j`` would be a job's number."""
    return path.replace("%", "%%")


def header(array: Array) -> str:
    """The ``#SBATCH`` lines of an array."""
    request = array.request
    more: dict[str, object] = {
        "array": ranges(array.tasks) + (f"%{request.parallelism}" if request.parallelism else ""),
        "chdir": str(array.folder),
        "output": f"{pattern(str(array.folder))}/%A_%a.out",
        "signal": f"B:USR2@{request.signal_s}",
        "kill-on-invalid-dep": "yes",
        **dict(request.more),
    }
    return options(request, array.folder, array.tag, more) + "\n#SBATCH --requeue\n#SBATCH --hold"


def options(request: Request, folder: Path, tag: str, more: Mapping[str, object]) -> str:
    """The ``#SBATCH`` lines that a request asks for, by submitit, then those as written."""
    from submitit.slurm.slurm import _make_sbatch_string

    text = _make_sbatch_string(
        command="true",
        folder=folder,
        job_name=request.name,
        partition=request.partition,
        account=request.account,
        qos=request.qos,
        time=request.minutes,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=request.cpus,
        mem=request.memory,
        gres=request.gres,
        constraint=request.constraint,
        exclude=request.exclude,
        mail_type=request.mail_type,
        mail_user=request.mail,
        comment=tag,
        wckey=None,  # type: ignore[arg-type]  # submitit's own default charges a key that most sites do not have
        stderr_to_stdout=True,
        additional_parameters=dict(more),
        use_srun=False,
    )
    lines = [line for line in text.splitlines() if line.startswith(("#!", "#SBATCH"))]
    lines += [f"#SBATCH {option}" for option in request.sbatch]
    return "\n".join(lines)
