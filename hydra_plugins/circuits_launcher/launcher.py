"""The one launcher: every run, swept or single, here or on a cluster, goes through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any, Optional, cast, get_origin, get_type_hints

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf import DictConfig, OmegaConf


def _field(name: str, hint: Any) -> tuple[str, Any, Any]:
    """A key as hydra-submitit-launcher types it, but optional: null leaves the choice to the cluster's yaml."""
    if get_origin(hint) is dict:  # OmegaConf takes no values for a mapping that is null
        return name, hint, field(default_factory=dict)
    return name, Optional[hint], field(default=None)  # noqa: UP045 (OmegaConf reads this one)


_HINTS = get_type_hints(SlurmQueueConf)
LauncherConf = make_dataclass(
    "LauncherConf",
    [
        *(_field(f.name, _HINTS[f.name]) for f in fields(SlurmQueueConf) if f.name != "_target_"),
        ("_target_", str, field(default=f"{__name__}.CircuitsLauncher")),
    ],
)
_NODE = OmegaConf.structured(LauncherConf)
OmegaConf.set_struct(_NODE.additional_parameters, False)  # its keys are sbatch's, which no schema of ours lists
ConfigStore.instance().store(group="hydra/launcher", name="circuits", node=_NODE, provider="circuits")


class CircuitsLauncher(Launcher):
    """Composes each element once and hands them over; the sweep's exit code is kept by ``circuits.launch.cli``."""

    def __init__(self, **given: Any) -> None:
        plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in given.items()}
        self.given = {name: value for name, value in plain.items() if value not in (None, {})}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        loader = self.hydra_context.config_loader
        # A sweep of one was composed to find this launcher.
        composed = list(map(str, cast(list, OmegaConf.to_container(self.config.hydra.overrides.task, resolve=False))))
        if len(job_overrides) > 1 or any("${" in word for word in composed):  # what Hydra tells an element only
            whole = None
        else:
            whole = _elements(composed, loader)

        def compose(overrides: Sequence[str]) -> Any:
            if whole == [list(overrides)]:
                return self.config
            return loader.load_sweep_config(self.config, list(overrides))

        # hydra.main passes this function; it is circuits.launch.cli's, which launches the sweep and keeps its exit code
        self.task_function((compose, [list(overrides) for overrides in job_overrides], self.given))
        return []


def _elements(words: Sequence[str], loader: Any) -> list[list[str]]:
    """The overrides of each element as the sweeper writes them: ``true`` as ``True``, of a key that is given twice the last."""
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    return [list(element) for batch in BasicSweeper.split_arguments(parsed, None) for element in batch]
