"""The names of hydra-submitit-launcher's options, for who writes ``hydra.launcher.…`` in place of ``cluster`` and resources."""

from __future__ import annotations

from dataclasses import fields

#: hydra-submitit-launcher's keys (its ``SlurmQueueConf``) that have a meaning here, and the field of :class:`Request` each sets.
LAUNCHER_KEYS = {
    "timeout_min": "minutes",
    "cpus_per_task": "cpus",
    "gpus_per_node": "gpus",
    "mem_gb": "memory",
    "name": "name",
    "partition": "partition",
    "qos": "qos",
    "constraint": "constraint",
    "exclude": "exclude",
    "gres": "gres",
    "account": "account",
    "signal_delay_s": "signal_s",
    "max_num_timeout": "max_num_timeout",
    "array_parallelism": "parallelism",
    "setup": "setup",
    "additional_parameters": "more",
}


def launcher_names() -> tuple[str, ...]:
    """All names that hydra-submitit-launcher's typed config has."""
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    return tuple(f.name for f in fields(SlurmQueueConf))
