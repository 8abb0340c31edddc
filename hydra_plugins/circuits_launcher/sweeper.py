"""Expands a sweep into elements and nothing else; composing and checking them is the launcher's work."""

from __future__ import annotations

from collections.abc import Mapping

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from circuits.errors import UserError

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="circuits",
    node={"_target_": f"{__name__}.CircuitsSweeper", "params": None},
    provider="circuits",
)


class CircuitsSweeper(Sweeper):
    """Hydra's own sweep grammar (`range`, `choice`, `glob`, commas) as one batch; no element is composed here."""

    launcher: Launcher

    def __init__(self, params: Mapping[str, str] | None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        if self.hydra_context is None:
            raise RuntimeError("Hydra sweeps only after setup")
        arguments = [*self._params(arguments), *arguments]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = BasicSweeper.split_arguments(parser.parse_overrides(arguments), max_batch_size=None)
        if not any(batches):
            raise UserError(f"nothing to run: a sweep in {' '.join(arguments)} is empty (range(0,4) is 0, 1, 2, 3)")
        for batch in batches:  # one batch: no maximum was given
            self.launcher.launch(batch, initial_job_idx=0)

    def _params(self, arguments: list[str]) -> list[str]:
        """The sweep that an experiment brings along (``hydra.sweeper.params``, as in Hydra's own sweeper), but for the keys that
        the command line gives."""
        given = {argument.partition("=")[0] for argument in arguments}
        return [f"{key}={value}" for key, value in self.params.items() if key not in given]
