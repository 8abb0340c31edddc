"""The one launcher: every run, swept or single, here or on a cluster, goes through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any, Optional, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf import DictConfig, OmegaConf

#: hydra-submitit-launcher's keys, typed as it types them, all optional: null leaves the choice to the cluster's yaml.
_FIELDS = [
    (f.name, Optional[get_type_hints(SlurmQueueConf)[f.name]], field(default=None))  # noqa: UP045 (OmegaConf reads this one)
    for f in fields(SlurmQueueConf)
    if f.name != "_target_"
]
LauncherConf = make_dataclass(
    "LauncherConf", [*_FIELDS, ("_target_", str, field(default=f"{__name__}.CircuitsLauncher"))]
)
ConfigStore.instance().store(group="hydra/launcher", name="circuits", node=LauncherConf, provider="circuits")


class CircuitsLauncher(Launcher):
    """Composes each element once and hands them over; the sweep's exit code is kept by ``circuits.run.cli``."""

    def __init__(self, **given: Any) -> None:
        plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in given.items()}
        self.given = {name: value for name, value in plain.items() if value is not None}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        loader = self.hydra_context.config_loader
        composed = list(self.config.hydra.overrides.task)  # a sweep of one was composed to find this launcher

        def compose(overrides: Sequence[str]) -> Any:
            return (
                self.config if list(overrides) == composed else loader.load_sweep_config(self.config, list(overrides))
            )

        # hydra.main passes this function; it is circuits.run.cli's, which launches the sweep and keeps its exit code
        self.task_function((compose, [list(overrides) for overrides in job_overrides], self.given))
        return []
