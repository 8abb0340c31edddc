"""Roles of fields: what a group's field names is resolved, quoted and read by its role alone, whatever the group."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import pytest
from configs import compose

from circuits import schema
from circuits.command import foreign, overrides
from circuits.errors import UserError
from circuits.run import config
from circuits.schema.fields import file, free, named_file, naming, taken_from
from circuits.store import registry
from circuits.store.contents import Contents
from circuits.store.keys import canonical


@dataclass
class ProbeConfig:
    """A group that nobody has heard of."""

    prompts: str | None = file(None, "records")
    from_: str | None = taken_from("sae")
    notes: str | None = named_file(None)
    batch: int = free(4)
    k: int = 2


def with_probe(probe: ProbeConfig) -> Any:
    cfg: Any = compose()
    kind = make_dataclass("Other", [("probe", ProbeConfig, field(default_factory=ProbeConfig))], bases=(type(cfg),))
    return kind(**vars(cfg), probe=probe)


def test_a_new_group_needs_no_place_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "target": " b", "foil": " c"}\n')
    (tmp_path / "notes.txt").write_text("x")
    cfg = with_probe(ProbeConfig(prompts="p.jsonl", notes="notes.txt", from_="sae/tiny-L1-topk-0123456789ab"))
    roles = {one.key: (one.role, one.content) for one in schema.naming(cfg) if one.key.startswith("probe")}
    assert roles == {
        "probe.prompts": ("file", "records"),
        "probe.from_": ("from", "sae"),
        "probe.notes": ("path", None),
    }
    cfg = config.absolute(cfg, tmp_path)
    assert cfg.probe.prompts == str(tmp_path / "p.jsonl") and cfg.probe.notes == str(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"probe\.from=sae/tiny-L1-topk-0123456789ab: no such artifact in"):
        foreign.locate(cfg)
    cfg.probe.from_ = None
    found = canonical("probe", cfg.probe, Contents())
    assert set(found) == {"prompts", "from_", "k"} and len(found["prompts"]) == 64, "content; nothing that is free"
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "target": " b",   "foil": " c"}\r\n')
    assert canonical("probe", cfg.probe, Contents()) == found, "the same records"
    monkeypatch.setattr(config, "root", lambda: type(cfg))
    overrides.texts.cache_clear()
    try:
        words = overrides.canonical(
            ["probe.prompts=my file (1).jsonl", "probe.from=a dir", "probe.notes=x y", "probe.k=3"]
        )
    finally:
        overrides.texts.cache_clear()
    assert words == ["probe.prompts='my file (1).jsonl'", "probe.from_='a dir'", "probe.notes='x y'", "probe.k=3"]


def test_a_role_that_does_not_exist_is_said_when_the_schema_is_read() -> None:
    @dataclass
    class Typo:
        notes: str = field(default="", metadata={"role": "fre"})

    with pytest.raises(UserError, match=r"Typo\.notes: no role 'fre'; did you mean free\?"):
        list(naming(Typo()))


def test_two_tasks_with_options_in_one_section_are_refused_when_the_schema_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = type("Module", (), {"Options": Typed, "SECTION": "attribution"})
    there = {**registry.modules(), "zebra": module}
    monkeypatch.setattr(registry, "modules", lambda: there)
    with pytest.raises(UserError, match=r"tasks/zebra\.py: another task has options in a section attribution"):
        registry.options()


@dataclass
class Typed:
    """Options of a task that takes another one's section."""

    k: int = 1


def test_a_rule_that_does_not_exist_is_said_when_the_key_is_made() -> None:
    with pytest.raises(UserError, match=r"probe\.x: no rule for content 'sounds'"):
        Contents().of("probe.x", "sounds", type("S", (), {"x": "a"})())
