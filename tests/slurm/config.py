"""The files of a cluster: slurm.conf with its partitions, gres.conf, slurmdbd.conf, and a stand-in for mail(1)."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slurm import debian

ACCOUNTS = ("MYPROJ-SL3-CPU", "MYPROJ-SL3-GPU")  # the first is the user's default
QOS = ("normal", "gpu1", "intr")
CREDENTIAL_SECONDS = (
    5  # a requeued job may not start again before its credential has expired (Slurm's own default: 120 s)
)


@dataclass(frozen=True)
class Options:
    """What a cluster is made of."""

    accounting: bool = True  # munged + mariadbd + slurmdbd, so that sacct answers and accounts are enforced
    nodes: int = 2
    cpus: int = 8  # claimed, whatever the machine has
    gpus: int = 4  # claimed as gpu:a100
    changes: tuple[str, ...] = ()  # lines that replace those of the same key in slurm.conf, or join it


@dataclass(frozen=True)
class Ports:
    """Where the daemons listen, on 127.0.0.1."""

    controller: int
    database: int
    nodes: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """Every port."""
        return (self.controller, self.database, *self.nodes)


def host() -> str:
    """This machine's short name, which slurmctld compares with its own."""
    return socket.gethostname().split(".")[0]


def key(line: str) -> str:
    """What a line of slurm.conf defines: ``MaxArraySize``, or ``PartitionName=scavenge``."""
    first = line.split()[0]
    name = first.split("=")[0]
    return (first if name.lower() in ("partitionname", "nodename") else name).lower()


def changed(lines: Iterable[str], changes: Iterable[str]) -> list[str]:
    """The lines, with those of the changes in the place of lines of the same key."""
    new = {key(line): line for line in changes}
    kept = [new.pop(key(line), line) for line in lines]
    partitions = [line for k, line in new.items() if k.startswith("partitionname")]
    return [*(line for line in new.values() if line not in partitions), *kept, *partitions]


def slurm_conf(folder: Path, options: Options, ports: Ports) -> str:
    """slurm.conf of a cluster in `folder`."""
    lines = [*_daemons(folder, ports), *_behaviour(folder)]
    lines += _accounting(folder, ports) if options.accounting else ["AccountingStorageType=accounting_storage/none"]
    for number, port in enumerate(ports.nodes, 1):
        gres = f" Gres=gpu:a100:{options.gpus}" if options.gpus else ""
        lines.append(
            f"NodeName=node{number} NodeHostname={host()} NodeAddr=127.0.0.1 Port={port} CPUs={options.cpus} "
            f"RealMemory=64000{gres} State=UNKNOWN"
        )
    return "\n".join(changed([*lines, *_partitions(options.accounting)], options.changes)) + "\n"


def _daemons(folder: Path, ports: Ports) -> list[str]:
    """Who listens where, and writes what: everything on loopback, everything below the folder."""
    user = getpass.getuser()
    return [
        "ClusterName=testcluster",
        f"SlurmctldHost={host()}(127.0.0.1)",
        f"SlurmctldPort={ports.controller}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={folder}/munge/munge.sock,cred_expire={CREDENTIAL_SECONDS}",
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid",
        f"SlurmdPidFile={folder}/run/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd-%n.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        f"MailProg={folder}/mail.sh",
    ]


def _behaviour(folder: Path) -> list[str]:
    """No systemd and no cgroups; quick scheduling; patience with a busy machine."""
    return [
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=5",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "ReturnToService=2",
        "SlurmdParameters=config_overrides",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=100",
        "GresTypes=gpu",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,preempt_send_user_signal",
        "PriorityType=priority/basic",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "EnforcePartLimits=ALL",
        "KillWait=5",
        "OverTimeLimit=0",
        "CompleteWait=0",
        "MinJobAge=3600",  # ended jobs stay in squeue -t all
        "SlurmctldTimeout=60",
        "SlurmdTimeout=60",
        "MessageTimeout=30",
        "TCPTimeout=10",
        "InactiveLimit=0",
        "WaitTime=0",
        "JobRequeue=1",
        "MaxArraySize=1001",
    ]


def _accounting(folder: Path, ports: Ports) -> list[str]:
    """Accounts are enforced: a job with a wrong one is refused by sbatch."""
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={ports.database}",
        f"AccountingStoragePass={folder}/munge/munge.sock",
        "AccountingStorageEnforce=associations,qos",
        "AccountingStorageTRES=gres/gpu",
        "AccountingStoreFlags=job_comment",
    ]


def _partitions(accounting: bool) -> list[str]:
    """As on the clusters that the presets describe; ampere takes the GPU account alone, so a missing one is refused there."""
    gpu_account = f" AllowAccounts={ACCOUNTS[1].lower()}" if accounting else ""
    common = "Nodes=ALL DefaultTime=10 State=UP"
    return [
        f"PartitionName=cpu {common} Default=YES MaxTime=12:00:00 PriorityTier=10 PreemptMode=OFF",
        f"PartitionName=ampere {common} MaxTime=36:00:00 PriorityTier=10 PreemptMode=OFF{gpu_account}",
        f"PartitionName=gpu {common} MaxTime=48:00:00 PriorityTier=10 PreemptMode=OFF",
        f"PartitionName=short {common} MaxTime=00:30:00 PriorityTier=10 PreemptMode=OFF",
        f"PartitionName=scavenge {common} MaxTime=48:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10",
    ]


def slurmdbd_conf(folder: Path, ports: Ports) -> str:
    """slurmdbd.conf: the database is reached through its unix socket (MYSQL_UNIX_PORT)."""
    return f"""AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports.database}
SlurmUser={getpass.getuser()}
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CommunicationParameters=NoInAddrAny
"""


def files(folder: Path, options: Options, ports: Ports) -> dict[str, str]:
    """Every file of a cluster that is text."""
    gres = [
        f"NodeName=node{n} Name=gpu Type=a100 File={folder}/dev/nvidia{g}"
        for n in range(1, options.nodes + 1)
        for g in range(options.gpus)
    ]
    cgroup = "CgroupPlugin=disabled" if debian.version() >= (23, 2) else "# cgroups are not used"
    written = {
        "slurm.conf": slurm_conf(folder, options, ports),
        "gres.conf": "\n".join(gres) + "\n",
        "cgroup.conf": cgroup + "\n",
        "env.sh": f"export SLURM_CONF={folder}/slurm.conf\n",
        "mail.sh": f'#!/bin/sh\n{{ echo "== $*"; cat; }} >> {folder}/log/mail.log\n',
    }
    return written | ({"slurmdbd.conf": slurmdbd_conf(folder, ports)} if options.accounting else {})
