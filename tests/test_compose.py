"""Sweeps are composed quickly and mean what they mean to Hydra: every element equals Hydra's own composition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from configs import copy_conf, edit
from omegaconf import OmegaConf

from circuits.command.compose import Composer
from circuits.errors import UserError
from circuits.run import config
from circuits.store import places

Compose = Callable[[Sequence[str]], Any]


@pytest.fixture
def hydra() -> Iterator[Compose]:
    """Plain Hydra on conf/ (or a test's copy of it), counting its calls in ``hydra.calls``."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    def composed(words: Sequence[str]) -> Any:
        composed.calls += 1  # type: ignore[attr-defined]
        with initialize_config_dir(version_base="1.3", config_dir=str(places.CONF)):
            return compose("config", overrides=list(words), return_hydra_config=True)

    composed.calls = 0  # type: ignore[attr-defined]
    config.register()
    GlobalHydra.instance().clear()
    yield composed
    places.choices.cache_clear()
    places.config_groups.cache_clear()


def outcome(make: Callable[[], Any]) -> Any:
    """What comes out of it: plain values, or the error's kind and first line."""
    try:
        return dataclasses.asdict(make())
    except Exception as e:
        return type(e).__name__, str(e).splitlines()[:1]


def same(hydra: Compose, lists: Sequence[Sequence[str]], composed: int) -> None:
    """All elements equal plain Hydra's, and only `composed` of them needed it."""
    before = hydra.calls  # type: ignore[attr-defined]
    composer = Composer(hydra)
    ours = [outcome(lambda words=words: composer(words)) for words in lists]  # type: ignore[misc]
    assert hydra.calls - before == composed  # type: ignore[attr-defined]
    for words, found in zip(lists, ours, strict=True):
        assert found == outcome(lambda words=words: config.to_object(hydra(words))), words  # type: ignore[misc]


SWEEPS: dict[str, tuple[list[list[str]], int]] = {
    "layers and numbers": ([[f"layer={i}", f"sae.k={k}", f"sae.lr={lr}"] for i, k, lr in
                            [(0, 8, "1e-3"), (1, 16, "1"), (3, 1_000, "3e-4"), (2, "1_6", ".5")]], 1),
    "every way to write a layer": ([[f"layer={v}"] for v in
                                    ("0", "0-3", "all", "[0,2]", "[0-1,3]", "'1'", "[]", "[1,[2]]", "null", "1.5")], 1),
    "groups": ([[f"sae={a}", f"precision={p}", f"seed={s}"]
                for a in ("topk", "relu") for p in ("fp32", "bf16") for s in (0, 5)], 3),
    "groups with values of their own": ([[f"behaviour={b}", f"behaviour.n_samples={n}", f"sae={a}", f"sae.lr={lr}", "model=gpt2"]
                                         for n, lr in ((20, "1e-3"), (30, "1"))
                                         for b in ("ioi", "facts", "induction") for a in ("relu", "topk", "gated")], 5),
    "groups beside a study": ([["experiment=sae_canary", f"sae={a}", f"precision={p}"]
                               for a in ("topk", "relu") for p in ("fp32", "bf16")], 4),
    "groups and a value that does not fit": ([[f"sae={a}", f"precision={p}", f"sae.steps={n}"] for a, p, n in
                                              (("topk", "fp32", 1), ("topk", "bf16", 1), ("relu", "fp32", 1), ("relu", "bf16", "x"),
                                               ("relu", "bf16", 2))], 4),
    "an experiment": ([["experiment=sae_canary", f"sae.min_r2={v}", "layer=1"] for v in ("0.1", "0.2", "null")], 1),
    "quoted and odd texts": ([[f"note={v}", "name=x"] for v in
                              ("plain", "'two words'", '"a, b"', "null", "'null'", "'3'", "3", "true", "'[1,2]'", "'كيف'",
                               r"'it\'s'", "''")], 1),
    "choices and truth values": ([[f"sae.site={s}", f"model.allow_fallback={b}", f"reuse={r}"] for s, b, r in
                                  [("resid_post", "true", "cached"), ("mlp_out", "false", "force"), ("head_z", "yes", "readonly"),
                                   ("resid_pre", "1", "cached")]], 1),
    "another model": ([["model=hf", f"model.id={name}", "layer=0"] for name in ("org/a", "'/a dir/b'", "org/c-1.5")], 1),
    "inside of a section": ([[f"model.embedded.steps={n}", f"task.resources.cpus={c}"] for n, c in ((3, 1), (4, 2))], 1),
    "Hydra's own": ([[f"++hydra.launcher.timeout_min={m}", f"seed={s}"] for m in (5, 6) for s in (1, 2)], 2),
    "the same key twice": ([["seed=1", f"seed={s}"] for s in (2, 3)], 2),
    "a mapping": ([[f"model.sets.{name}=[0]", "layer=0"] for name in ("x", "y")], 2),
    "interpolations": ([[f"sae.k={k}", f"seed={s}"] for k, s in (("${seed}", 3), ("${seed}", 4), ("7", 5))], 3),
    "an interpolation that comes later": ([["sae.k=1", "seed=1"], ["sae.k=${seed}", "seed=2"], ["sae.k=3", "seed=3"]], 2),
    "values that do not fit": ([["sae.k=1"], ["sae.k=many"], ["sae.k=2"], ["sae.site=nowhere"], ["sae.kk=1"], ["sae.k=3"],
                                ["sae.k=كيف"], ["sae.k=4"]], 5),
    "what is missing": ([["model=hf", "model.id=???"], ["model=hf", "model.id=a"], ["model=hf", "model.id=b"]], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_every_element_is_what_hydra_composes(name: str, hydra: Compose) -> None:
    same(hydra, *SWEEPS[name])


def test_the_environment_in_a_yaml_is_a_constant_and_a_reference_to_another_key_is_not(
    hydra: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = copy_conf(tmp_path, monkeypatch)
    monkeypatch.setenv("CIRCUITS_TEST_PROJECT", "mine")
    edit(conf / "tracking" / "wandb.yaml", "project: circuits", "project: ${oc.env:CIRCUITS_TEST_PROJECT}")
    same(hydra, [[f"seed={i}"] for i in range(3)], 1)
    edit(conf / "sae" / "topk.yaml", "k: 32", "k: ${seed}")
    same(hydra, [[f"seed={i}"] for i in range(1, 4)], 3)


def test_elements_share_nothing_that_can_be_changed(hydra: Compose) -> None:
    composer = Composer(hydra)
    cfgs = [composer([f"layer=[{i},3]", "data=text", "data.path=x"]) for i in range(3)]
    for i, cfg in enumerate(cfgs):
        config.absolute(cfg, Path(f"/base/{i}"))
        cfg.layer.append(9)
        cfg.model.sets["late"] = [i]
    assert [cfg.layer for cfg in cfgs] == [[0, 3, 9], [1, 3, 9], [2, 3, 9]]
    assert [cfg.model.sets for cfg in cfgs] == [{"late": [i]} for i in range(3)]
    assert [cfg.outputs for cfg in cfgs] == [f"/base/{i}/outputs" for i in range(3)]
    again = composer(["layer=[0,3]", "data=text", "data.path=x"])
    assert again.layer == [0, 3] and again.model.sets == {} and again.outputs == "outputs"


def test_a_missing_value_is_one_line(hydra: Compose) -> None:
    with pytest.raises(UserError, match=r"model\.id: needs a value; write model\.id="):
        Composer(hydra)(["model=hf"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["layer=[0-1,3]", "sae.lr=1e-5", "experiment=sae_canary"],
        *[[f"note={text}"] for text in ("'1e5'", "'0x1F'", "'on'", "'null'", "'a: b # c'", "'1_000'", "''", "'~'", "'كيف'")],
    ],
)  # fmt: skip
def test_a_saved_config_is_omegaconfs_yaml_and_reads_back(words: list[str], hydra: Compose, tmp_path: Path) -> None:
    cfg = Composer(hydra)(words)
    cfg.model.sets["late"] = [1, 2]
    path = tmp_path / "config.yaml"
    config.save(cfg, path)
    assert OmegaConf.load(path) == OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    assert dataclasses.asdict(config.load(path)) == dataclasses.asdict(cfg)


def test_of_many_saved_configs_only_what_differs_is_typed(
    hydra: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composer, typed = Composer(hydra), []
    cfgs = [composer([f"sae.k={k}", "layer=1"]) for k in range(1, 21)]
    for cfg in cfgs:
        config.save(cfg, tmp_path / f"{cfg.sae.k}.yaml")
    monkeypatch.setattr(config, "_sections", {})
    monkeypatch.setattr(
        config, "_filled", lambda kind, found, make=config._filled: (typed.append(kind), make(kind, found))[1]
    )
    found = [config.load(tmp_path / f"{cfg.sae.k}.yaml") for cfg in cfgs]
    assert [dataclasses.asdict(one) for one in found] == [dataclasses.asdict(one) for one in cfgs]
    assert len(typed) == len(set(typed)) + 19, "each section once, and 19 times more that of the SAE"
    found[0].model.sets["late"] = [1]
    assert found[1].model.sets == {} == config.load(tmp_path / "1.yaml").model.sets, "they share nothing"


def test_a_config_in_another_hand_is_read_as_yaml_reads_it(hydra: Compose, tmp_path: Path) -> None:
    cfg, path = Composer(hydra)(["note='two\\nsae: lines'"]), tmp_path / "config.yaml"
    config.save(cfg, path)
    saved = path.read_text()
    for text in (saved, f"# mine\n{saved}", f"first: &n x\n{saved}last: *n\n"):
        path.write_text(text)
        assert config.read(path) == OmegaConf.to_container(OmegaConf.load(path))
    for text, says in (("sae: {k: many}\n", "sae.k: "), ("sae: [\n", "no yaml"), ("nothing\n", "no config")):
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            config.load(path)
