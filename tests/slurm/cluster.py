"""A real Slurm on this machine: munged [+ mariadbd + slurmdbd] + slurmctld + slurmd nodes on 127.0.0.1, in one folder.

``python tests/slurm/cluster.py up DIR`` starts it (and installs Debian's packages when absent), or repairs what was killed;
then ``. DIR/env.sh``. ``down DIR`` ends what it started, and the jobs. Ports are free ones, so clusters live side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from slurm import config, debian, processes
from slurm.config import ACCOUNTS, QOS, Options, Ports
from slurm.debian import SlurmUnavailable, program
from slurm.processes import Daemon, until

LONGEST = 50  # a unix socket's path has at most 108 characters, and slurmstepd adds up to 50 of its own
PATIENCE = 120.0  # seconds for one daemon: usually under one, on a busy machine many
ATTEMPTS = 3
FOLDERS = ("munge", "state", "log", "run", "dev", "spool")
DATABASE = """create database if not exists slurm_acct_db;
create user if not exists slurm@localhost identified by 'slurm';
grant all on slurm_acct_db.* to slurm@localhost;"""


class StartError(RuntimeError):
    """A daemon did not come up; the message holds the end of its log."""


class Cluster:
    """One cluster in one folder; any process may open it by the same folder."""

    def __init__(self, folder: Path | str, options: Options | None = None) -> None:
        self.folder = Path(folder).resolve()
        if len(str(self.folder)) > LONGEST:
            raise ValueError(
                f"{self.folder} has {len(str(self.folder))} characters, at most {LONGEST}: choose /tmp/NAME"
            )
        self.record = self.folder / "cluster.json"
        saved = json.loads(self.record.read_text()) if self.record.exists() else {}
        known = Options(**{**saved["options"], "changes": tuple(saved["options"]["changes"])}) if saved else Options()
        self.options = options or known
        self.ports: Ports | None = (
            Ports(**{**saved["ports"], "nodes": tuple(saved["ports"]["nodes"])}) if saved else None
        )

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def conf(self) -> Path:
        """slurm.conf."""
        return self.folder / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """All that a client needs in its environment."""
        return {"SLURM_CONF": str(self.conf)}

    @property
    def nodes(self) -> list[str]:
        """The nodes' names."""
        return [f"node{n}" for n in range(1, self.options.nodes + 1)]

    @property
    def titles(self) -> list[str]:
        """The daemons, in the order in which they start."""
        accounting = ["mariadbd", "slurmdbd"] if self.options.accounting else []
        return ["munged", *accounting, "slurmctld", *(f"slurmd-{node}" for node in self.nodes)]

    def daemon(self, title: str) -> Daemon:
        """A daemon by its title, whether it runs or not."""
        return Daemon(self.folder, title)

    @property
    def pids(self) -> dict[str, int]:
        """The daemons that run."""
        return {title: pid for title in self.titles if (pid := self.daemon(title).pid) is not None}

    def client(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands against this cluster."""
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SQUEUE", "SACCT", "SCANCEL"))
        }
        try:
            return subprocess.run(
                [program(words[0]), *words[1:]], env={**kept, **self.env}, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(list(words), 124, "", f"{words[0]}: no answer in {seconds:.0f} s")

    def healthy(self) -> bool:
        """Every daemon runs, every node can take jobs, and sacct answers."""
        if set(self.pids) != set(self.titles):
            return False
        said = self.client("sinfo", "-h", "-N", "-o", "%N %t", seconds=20).stdout.split()
        states = dict(zip(said[::2], said[1::2], strict=True)) if len(said) % 2 == 0 else {}
        good = {node for node, state in states.items() if state in ("idle", "alloc", "mix", "comp", "plnd")}
        return good == set(self.nodes) and (
            not self.options.accounting or self.client("sacct", "-n", "-X", seconds=20).returncode == 0
        )

    # -- up and down -----------------------------------------------------------------------------------------------

    def up(self) -> Cluster:
        """Start it; where it already runs only what is missing is started, so that its jobs live on."""
        debian.install(self.options.accounting)
        self.folder.mkdir(parents=True, exist_ok=True)
        with debian.locked(self.folder / ".lock"):
            if self._same() and self.healthy():
                return self
            for attempt in range(ATTEMPTS):
                if attempt or not self._same():
                    self._stop()
                    self._write(self._choose())
                try:
                    self._start()
                    return self
                except StartError:
                    if attempt == ATTEMPTS - 1:
                        self._stop()
                        raise
        return self

    def down(self, wipe: bool = True) -> None:
        """End the guard, the jobs and the daemons that this folder records; remove the folder unless `wipe` is false."""
        if not self.folder.is_dir():
            return
        with debian.locked(self.folder / ".lock"):
            self._stop()
            if wipe:
                shutil.rmtree(self.folder, ignore_errors=True)

    def guarded_by(self, owner: int) -> Cluster:
        """Have the cluster taken down when the process `owner` is gone, even if that was killed with SIGKILL."""
        words = [sys.executable, __file__, "guard", str(self.folder), str(owner), str(processes.started(owner))]
        self.daemon("guard").start(words, os.environ)
        return self

    def job_processes(self) -> list[int]:
        """slurmstepd and the processes of jobs, known by the SLURM_CONF that they carry."""
        found = []
        for pid in processes.everything():
            carried = processes.environment(pid)
            ours = carried.get("SLURM_CONF") == str(self.conf)
            if ours and ("SLURM_JOB_ID" in carried or processes.name(pid) == "slurmstepd"):
                found.append(pid)
        return found

    def on_node(self, node: str) -> list[int]:
        """The slurmstepds and processes of the jobs that run on a node."""
        numbers = set(self.client("squeue", "-h", "-w", node, "-t", "R,CG,S", "-o", "%A", seconds=20).stdout.split())
        return [pid for pid in self.job_processes() if _job(pid) in numbers]

    def _stop(self) -> None:
        """Everything that was started here, from the leaves to the root."""
        guard = self.daemon("guard")
        if guard.pid != os.getpid():
            guard.stop()
        titles = [p.stem for p in (self.folder / "run").glob("*.json") if p.stem != "guard"]
        for daemon in [self.daemon(title) for title in titles if title.startswith("slurmd-")]:
            daemon.stop()
        until(lambda: not processes.kill(self.job_processes()), 20)  # a step may have begun one more
        order = {title: number for number, title in enumerate(("slurmctld", "slurmdbd", "mariadbd", "munged"))}
        for title in sorted(set(titles) & set(order), key=order.__getitem__):
            self.daemon(title).stop(30 if title == "mariadbd" else 10)

    def _same(self) -> bool:
        """Whether the files on disk are those of our options."""
        return self.ports is not None and all(
            (self.folder / name).is_file() and (self.folder / name).read_text() == text
            for name, text in config.files(self.folder, self.options, self.ports).items()
        )

    def _choose(self) -> Ports:
        """Free ports, below those that the kernel gives to outgoing connections."""
        chosen: list[int] = []
        while len(chosen) < self.options.nodes + 2:
            port = random.SystemRandom().randrange(12000, 32000)
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            if port not in chosen:
                chosen.append(port)
        return Ports(chosen[0], chosen[1], tuple(chosen[2:]))

    def _write(self, ports: Ports) -> None:
        """The files of the cluster."""
        self.ports = ports
        for name in (*FOLDERS, *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / name).chmod(0o755)
        self.folder.chmod(0o755)
        for name, text in config.files(self.folder, self.options, ports).items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod({"slurmdbd.conf": 0o600, "mail.sh": 0o755}.get(name, 0o644))
        key = self.folder / "munge" / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o400)
        for number in range(self.options.gpus):  # File= wants a character device; a link to one will do
            link = self.folder / "dev" / f"nvidia{number}"
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        self.record.write_text(json.dumps({"options": asdict(self.options), "ports": asdict(ports)}))

    # -- the daemons, in order -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start those daemons that do not run, each once the one before answers."""
        create = self._create_database() if self.options.accounting else None
        self._munged()
        if create:
            self._database(create)
            self._run("slurmdbd", [program("slurmdbd"), "-D"], priority=-5, MYSQL_UNIX_PORT=str(self._socket))
            self._await(
                "slurmdbd", lambda: self.client("sacctmgr", "-n", "show", "cluster", seconds=20).returncode == 0
            )
            self._accounts()
        self._run("slurmctld", [program("slurmctld"), "-D"], priority=-5)
        new = [node for node in self.nodes if self.daemon(f"slurmd-{node}").pid is None]
        for node in self.nodes:
            self._run(f"slurmd-{node}", [program("slurmd"), "-D", "-N", node])
        self._await("slurmctld", lambda: "is UP" in self.client("scontrol", "ping", seconds=20).stdout)
        for node in new:  # jobs that died with their node: slurmctld does not look for those under 20 s of age
            if not self.on_node(node):
                self.lose(node)
        self._await("slurmctld", self._nodes_ready, *(f"slurmd-{node}" for node in self.nodes))

    def lose(self, node: str) -> None:
        """What slurmctld does by itself after SlurmdTimeout: a node with jobs is down, and its jobs are requeued or fail."""
        if self.client("squeue", "-h", "-w", node, "-t", "R,CG,S", "-o", "%A", seconds=20).stdout.split():
            self.client("scontrol", "update", f"nodename={node}", "state=down", "reason=lost", seconds=20)

    def _nodes_ready(self) -> bool:
        """Whether the cluster is healthy; a node that a hard kill left down or drained is told to resume."""
        if self.healthy():
            return True
        bad = self.client("sinfo", "-h", "-N", "-t", "down,drain,fail", "-o", "%N", seconds=20).stdout.split()
        if bad:
            self.client("scontrol", "update", f"nodename={','.join(sorted(set(bad)))}", "state=resume", seconds=20)
        return False

    def _run(self, title: str, command: list[str], priority: int = 0, **extra: str) -> None:
        """Start a daemon unless it runs."""
        daemon = self.daemon(title)
        if daemon.pid is None:
            kept = {k: os.environ[k] for k in ("HOME", "LANG", "LC_ALL", "TZ") if k in os.environ}
            daemon.start(command, {"PATH": debian.SYSTEM, **kept, **self.env, **extra}, priority)

    def _await(self, title: str, ready: Callable[[], bool], *others: str) -> None:
        """Wait for a daemon that answers; at once an error when one has ended."""
        ended: list[str] = []

        def answered() -> bool:
            ended.extend(t for t in (title, *others) if self.daemon(t).pid is None)
            return bool(ended) or ready()

        came = until(answered, PATIENCE)
        if ended or not came:
            what = f"{ended[0]} ended" if ended else f"{title} did not answer in {PATIENCE:.0f} s"
            raise StartError(f"{what}\n{self.logs(ended[0] if ended else title)}")

    def logs(self, title: str = "slurmctld", lines: int = 15) -> str:
        """The end of a daemon's logs."""
        stem = {"munged": "munge/munged"}.get(title, f"log/{title}")
        found = [f for f in (self.folder / f"{stem}.log", self.folder / "log" / f"{title}.out") if f.is_file()]
        return "\n".join(line for f in found for line in f.read_text(errors="replace").splitlines()[-lines:])

    def _munged(self) -> None:
        """The authentication that all others need."""
        place = self.folder / "munge"
        if self.daemon("munged").pid is None:
            for name in ("munge.sock", "munge.sock.lock"):
                (place / name).unlink(missing_ok=True)
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log",
                 "seed-file": "munged.seed"}  # fmt: skip
        words = [f"--{option}={place / name}" for option, name in files.items()]
        self._run("munged", [program("munged"), "--foreground", "--force", "--num-threads=4", *words], priority=-5)
        self._await("munged", lambda: self.client("munge", "-n", "-S", str(place / "munge.sock")).returncode == 0)

    @property
    def _socket(self) -> Path:
        return self.folder / "run" / "mysql.sock"

    def _create_database(self) -> subprocess.Popen[bytes]:
        """mariadb's own tables; begun first, for it takes longest. Its own marker says that they are complete."""
        data, done = self.folder / "db", self.folder / "db" / ".done"
        if done.exists():
            return subprocess.Popen(["true"])
        shutil.rmtree(data, ignore_errors=True)
        words = [
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            "--innodb-log-file-size=8M",
        ]
        with (self.folder / "log" / "mariadb-install-db.out").open("ab") as log:
            return subprocess.Popen(
                [program("mariadb-install-db"), "--no-defaults", f"--datadir={data}", *self._user(), *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "PATH": debian.SYSTEM},
            )  # fmt: skip

    def _user(self) -> list[str]:
        """mariadb refuses to run as root unless told so."""
        return ["--user=root"] if os.geteuid() == 0 else []

    def _database(self, create: subprocess.Popen[bytes]) -> None:
        """mariadbd on a unix socket, with the one database."""
        try:
            code = create.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            create.kill()
            code = create.wait()
        if code != 0:
            raise StartError(f"mariadb-install-db ended with {code}\n{self.logs('mariadb-install-db')}")
        (self.folder / "db" / ".done").touch()
        if self.daemon("mariadbd").pid is None:
            self._socket.unlink(missing_ok=True)
        words = ["--skip-networking", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=8M", "--skip-log-bin",
                 "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900", "--performance-schema=OFF",
                 "--innodb-use-native-aio=0"]  # fmt: skip
        places = [
            f"--datadir={self.folder / 'db'}",
            f"--socket={self._socket}",
            f"--pid-file={self.folder / 'run/mysqld.pid'}",
        ]
        self._run("mariadbd", [program("mariadbd"), "--no-defaults", *self._user(), *places, *words], priority=-5)
        sql = partial(self.client, "mariadb", "--no-defaults", "-uroot", "-S", str(self._socket), "-e")
        self._await("mariadbd", lambda: sql(DATABASE).returncode == 0)

    def _accounts(self) -> None:
        """The accounts of the presets, for this user."""
        user = config.getpass.getuser()
        known = self.client("sacctmgr", "-n", "-P", "show", "assoc", "format=account,user,qos").stdout.lower().split()
        if any(line.startswith(f"{ACCOUNTS[1]}|{user}|".lower()) and QOS[-1] in line for line in known):
            return
        names, here = ",".join(ACCOUNTS), "cluster=testcluster"
        qos = f"qos={','.join(QOS)}"
        person = ("user", user, f"account={names}", here, f"defaultaccount={ACCOUNTS[0]}", qos, "defaultqos=normal")
        for words in (("cluster", "testcluster"), ("qos", ",".join(QOS[1:])), ("account", names, here), person):
            said = self.client("sacctmgr", "-i", "add", *words)
            if said.returncode and "already exists" not in (said.stdout + said.stderr).lower():
                raise StartError(f"sacctmgr add {' '.join(words)}: {(said.stdout + said.stderr).strip()}")


def _job(pid: int) -> str:
    """The number of the job that a process belongs to."""
    step = re.search(r"slurmstepd: \[(\d+)\.", processes.arguments(pid))
    return step[1] if step else processes.environment(pid).get("SLURM_JOB_ID", "")


def guard(cluster: Cluster, owner: int, begun: int) -> None:
    """Wait for the owner's end, then take the cluster down."""
    until(lambda: processes.started(owner) != begun, float("inf"), 0.5)
    cluster.down()


def main(words: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("up", "down", "guard"))
    parser.add_argument("folder", type=Path, help=f"at most {LONGEST} characters, such as /tmp/slurm")
    parser.add_argument("owner", nargs="*", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--no-accounting", action="store_true", help="without mariadbd and slurmdbd: faster, no sacct")
    for name in ("nodes", "cpus", "gpus"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Options(), name))
    parser.add_argument(
        "--set", action="append", default=[], metavar="LINE", help="a line of slurm.conf: MaxArraySize=5"
    )
    parser.add_argument("--keep", action="store_true", help="down: keep the folder with its logs")
    given = parser.parse_args(words)
    try:
        if given.action == "up":
            options = Options(not given.no_accounting, given.nodes, given.cpus, given.gpus, tuple(given.set))
            print(f"up: . {Cluster(given.folder, options).up().folder}/env.sh")
        elif given.action == "down":
            Cluster(given.folder).down(wipe=not given.keep)
        else:
            guard(Cluster(given.folder), *given.owner)
    except (StartError, SlurmUnavailable, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
