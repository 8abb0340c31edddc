"""The config that a list of overrides means, composed and checked as ``launch.py`` does it. No torch."""

from __future__ import annotations

from circuits import schema
from circuits.command import overrides, reading
from circuits.errors import UserError
from circuits.run import config
from circuits.store import places


def compose(words: list[str]) -> schema.BaseConfig:
    """The config of these overrides, as `launch.py` would compose it.

    Raises:
        UserError: anything that the command line would refuse.
    """
    arguments = overrides.normalise(words)
    overrides.check(arguments)
    cfg = composed(arguments.overrides)
    errors = reading.joined(schema.check(cfg), reading.unread([arguments.overrides], [cfg]))
    if errors:
        raise UserError(errors)
    return cfg


def composed(words: list[str]) -> schema.BaseConfig:
    """The config of these canonical overrides, not checked."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    config.register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(places.CONF)):
            return config.to_object(hydra_compose("config", overrides=words))
    except (HydraException, OmegaConfBaseException) as e:
        raise UserError(config.one_line(e)) from e
