"""The one launcher: every run, swept or single, here or on a cluster, goes through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/launcher", name="circuits", node={"_target_": f"{__name__}.CircuitsLauncher"}, provider="circuits"
)


class CircuitsLauncher(Launcher):
    """Composes each element once and hands them over; the sweep's exit code is kept by ``circuits.run.cli``."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        loader = self.hydra_context.config_loader

        def compose(overrides: Sequence[str]) -> Any:
            return loader.load_sweep_config(self.config, list(overrides))

        # hydra.main passes this function; it is circuits.run.cli's, which launches the sweep and keeps its exit code
        self.task_function((compose, [list(overrides) for overrides in job_overrides]))
        return []
