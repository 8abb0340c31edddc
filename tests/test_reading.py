"""An override that nothing reads under the rest of the config is an error that names what would read it."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from configs import compose, plan

from circuits import schema
from circuits.command import reading
from circuits.errors import UserError
from circuits.run import config
from circuits.schema.reading import CHOICE_OF, lookup
from circuits.store import registry
from circuits.store.contents import Contents
from circuits.store.keys import key_of_unit, units


def refused(*words: str) -> list[str]:
    """What is said against a command line."""
    with pytest.raises(UserError) as caught:
        compose(*words)
    return caught.value.messages


ONLY_SAES = " does not read it; task=clt or task=crosscoder or task=sae does"
REFUSED = [
    ("task=activations data.context=8",
     "data.context=8: activations.source=behaviour does not read it; activations.source=data does"),
    ("task=activations activations.source=data behaviour=cf",
     "behaviour=cf: activations.source=data does not read it; activations.source=behaviour does"),
    ("task=activations activations.source=data baseline.metric=full_target",
     "baseline.metric=full_target: activations.source=data does not read it; activations.source=behaviour does"),
    ("task=activations baseline.batch_size=2", "baseline.batch_size=2: task=activations does not read it; task=baseline does"),
    ("task=sae sae.from=/tmp sae.k=3", "sae.k=3: sae.from=/tmp does not read it; leave sae.from out"),
    ("task=sae sae.from=/tmp sae=relu", "sae=relu: sae.from=/tmp does not read it; leave sae.from out"),
    ("task=sae sae.from=/tmp sae.source=store", "sae.source=store: sae.from=/tmp does not read it; leave sae.from out"),
    ("task=sae sae.from=/tmp sae.checkpoint_every=3", "sae.checkpoint_every=3: sae.from=/tmp does not read it; leave sae.from out"),
    ("task=interpret sae.from=/tmp sae.k=3", "sae.k=3: sae.from=/tmp does not read it; leave sae.from out"),
    ("task=sae sae.source=store activations.site=mlp_out",
     "activations.site=mlp_out: activations.site=resid_post is taken here; leave it out"),
    ("task=sae sae.source=store activations.chunk=8", "activations.chunk=8: task=sae does not read it; task=activations does"),
    ("task=sae activations.dtype=bf16", "activations.dtype=bf16: sae.source=stream does not read it; sae.source=store does"),
    ("task=sae force=true", "force=true: task=sae asks no gate here"),
    ("task=interpret interpret.associate=false behaviour=cf",
     "behaviour=cf: interpret.associate=false does not read it; interpret.associate=true does"),
    ("task=interpret interpret.associate=false interpret.pool=mean",
     "interpret.pool=mean: interpret.associate=false does not read it; interpret.associate=true does"),
    ("task=interpret interpret.features=[1] interpret.max_features=3",
     "interpret.max_features=3: interpret.features=[1] does not read it; leave interpret.features out"),
    ("task=interpret sae.log_every=3", "sae.log_every=3: task=interpret" + ONLY_SAES),
    ("task=interpret sae.min_r2=0.3", "sae.min_r2=0.3: task=interpret" + ONLY_SAES),
    ("task=export sae.log_every=3", "sae.log_every=3: task=export" + ONLY_SAES),
    ("task=prompts behaviour.min_logit_diff=2",
     "behaviour.min_logit_diff=2: task=prompts does not read it; task=activations or task=attribution or task=baseline or "),
    ("task=interpret behaviour.success_threshold=0.5",
     "behaviour.success_threshold=0.5: task=interpret does not read it; task=activations or task=attribution or task=baseline or "),
    ("task=prompts model.device=cpu", "model.device=cpu: task=prompts does not read it; task=activations or task=attribution or "),
    ("task=sae model=gpt2 model.embedded.steps=3", "model.embedded.steps: model=gpt2 does not read it; model=tiny does"),
    ("task=sae model.layers=2", "model.layers: a fact of the model, not a choice"),
    ("task=sae data.max_tokens=500", "data.max_tokens=500: data=embedded does not read it; data=text, jsonl, datasets do"),
    ("task=sae sae.allow_small=true",
     "sae.allow_small=true: data=embedded does not read it; data=text, jsonl, datasets do, or sae.source=store does"),
    ("task=sae sae.from=/tmp sae.allow_small=true", "sae.allow_small=true: sae.from=/tmp does not read it; leave sae.from out"),
    ("task=sae model.allow_fallback=true",
     "model.allow_fallback=true: model.device=auto does not read it; a device by its name (cuda, mps) does"),
    ("task=sae cluster.stage=/tmp", "cluster.stage=/tmp: sae.source=stream does not read it; sae.source=store does"),
    ("task=prompts cluster=slurm cluster.cpu.gpu_type=x",
     "cluster.cpu.gpu_type=x: task.resources.gpus=0 does not read it; cluster.gpu.gpu_type is of the queue with GPUs"),
    ("task=sae cluster.gpu.account=x", "cluster.gpu.account=x: cluster=local does not read it; cluster=slurm does"),
    ("task=sae cluster.setup=[x]", "cluster.setup=[x]: cluster=local does not read it; cluster=slurm does"),
    ("task=sae cluster.parallelism=3",
     "cluster.parallelism=3: cluster=local does not read it; cluster.workers says how many at a time"),
    ("task=prompts cluster=slurm cluster.gpu.partition=x",
     "cluster.gpu.partition=x: task.resources.gpus=0 does not read it; cluster.cpu is where jobs without a GPU go"),
    ("task=sae cluster=csd3 cluster.mail_type=ALL",
     "cluster.mail_type=ALL: nobody is written to; cluster.mail=ADDRESS, user.csd3.mail or CIRCUITS_CSD3_MAIL says who"),
    ("task=sae cluster.mail_type=ALL", "cluster.mail_type=ALL: cluster=local does not read it; cluster=slurm does"),
    ("task=sae cluster=csd3 user.ncc.mail=x", "user.ncc.mail=x: cluster=csd3 does not read it; cluster=ncc does"),
    ("task=sae task.resources.time=3", "task.resources.time=3: cluster=local does not read it; cluster=slurm does"),
    ("task=sae tracking=off tracking.project=x",
     "tracking.project=x: tracking.mode=disabled does not read it; tracking.mode=offline, online do"),
    ("task=sae experiment=canary_memory",
     "experiment=canary_memory: task=sae reads nothing of it (activations.last_n activations.site"),
    ("task=archive archive.restore=x.tar archive.path=y", "archive.path=y: archive.restore=x.tar does not read it; leave archive."),
    ("task=clean clean.archive=x", "clean.archive=x: clean.archived=false does not read it; clean.archived=true does"),
    ("task=export layer=2 of=x", "of=x: export.format=saelens does not read it; export.format=bundle, source_layout do"),
    ("task=sae confirm=true", "confirm: task=sae does not read it; task=clean does"),
    ("task=recover of=x cluster=csd3", "cluster: task=recover does not read it; task=activations or "),
]  # fmt: skip


def test_a_corpus_is_refused_where_prompts_are_captured() -> None:
    said = refused("task=activations", "data=text", "data.path=/etc/hostname")
    ends = " does not read it; activations.source=data does"
    assert {message.partition(":")[0] for message in said} == {"data=text", "data.path=/etc/hostname"}
    assert all(message.endswith(f"activations.source=behaviour{ends}") for message in said)


@pytest.mark.parametrize(("line", "says"), REFUSED)
def test_what_this_config_does_not_read_is_refused_and_what_would_read_it_is_named(line: str, says: str) -> None:
    (message,) = refused(*line.split())
    assert message.startswith(says)


@pytest.mark.parametrize(
    "line",
    [
        "task=sae data=text data.path=/etc/hostname sae.allow_small=true",
        "task=sae sae.source=store sae.allow_small=true cluster.stage=/tmp",
        "task=sae model.device=cuda:0 model.allow_fallback=true",
        "task=status status.all=true status.verify=true",
    ],
)
def test_what_one_of_two_conditions_reads_is_taken(line: str) -> None:
    compose(*line.split())


def test_what_a_sweep_has_in_common_is_read_by_one_of_it_and_what_it_varies_by_each(tmp_path: Path) -> None:
    swept = ["task=interpret", "layer=0", "interpret.associate=true,false"]
    assert len(plan(*swept, "behaviour=ioi", base=tmp_path)) == 2
    with pytest.raises(UserError) as caught:
        plan(*swept, "interpret.pool=max,mean", base=tmp_path)
    assert caught.value.messages == [
        f"interpret.pool={pool}: interpret.associate=false does not read it; interpret.associate=true does"
        for pool in ("max", "mean")
    ]


# -- the rule against the keys: every field of every section that a task reads ----------------------------------

LINES = [
    "task=sae", "task=sae sae=relu", "task=sae sae=jumprelu", "task=sae sae=matryoshka sae.patience=3", "task=sae sae.from=/tmp",
    "task=sae sae.source=store", "task=sae data=text data.path=/etc/hostname", "task=sae sae.target_site=mlp_out sae.site=mlp_in",
    "task=activations", "task=activations activations.source=data", "task=activations behaviour=file behaviour.path=/etc/hostname",
    "task=interpret", "task=interpret interpret.associate=false", "task=interpret interpret.features=[1]",
    "task=baseline", "task=prompts", "task=attribution", "task=attribution attribution.method=eap",
    "task=attribution attribution.choose=threshold", "task=faithfulness", "task=faithfulness faithfulness.ablation=optimal",
]  # fmt: skip
#: Read, and yet in no key: what it says is in the key otherwise, or only under a condition of values.
EXPLAINED = {
    "sae.max_steps": "a cap beyond the schedule is none",
    "sae.sparsity": "worked into k and the penalties; an SAE whose penalty is null has none",
    "model.revision": "the commit that it stands for is in the key",
    "model.id": "the embedded model is named by what it is trained with",
    "activations.tokens": "instead of n_sequences",
    "activations.source": "which of the two is told by the inputs",
    "behaviour.path": "its content enters, whatever its name",
    "behaviour.multi_token": "null stands for fail, and fail for drop where the words are a generator's own",
}


class Named(Contents):
    """Contents by their names: nothing is read."""

    def of(self, where: str, content: str, section: Any, layers: Sequence[int] = ()) -> Any:
        return repr(lookup(section, where.split(".")[1]))

    def tokenizer(self, model: Any) -> str:
        return "tokenizer"


CONTENTS = Named()


def leaves(section: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Each value of a section: its dotted name, its type, what it is."""
    for name, hint in typing.get_type_hints(type(section)).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", hint, value


def another(hint: Any, value: Any) -> Any:
    """Another value of the same type."""
    options = typing.get_args(hint) or (hint,)
    for option in options:
        if isinstance(option, type) and issubclass(option, Enum):
            return next(member for member in option if member is not value)
    if bool in options:
        return not value
    if int in options or float in options:
        return (value or 0) * 2 + 3
    return [3] if Any in options and not isinstance(value, str) else f"{value}x"


def payload(cfg: schema.BaseConfig) -> str:
    """Everything that decides the result of a run: its keys, and those of the measurements that it stands on."""
    kind = registry.kind(cfg.task.name)
    found = [key_of_unit(kind, cfg, one, (1,), CONTENTS).hash for one in units(kind, cfg, (1,))]
    return " ".join(
        [*found, *(key_of_unit(registry.kind(name), cfg, None, (), CONTENTS).hash for name in kind.gates(cfg))]
    )


@pytest.mark.parametrize("line", LINES)
def test_what_is_not_read_is_in_no_key_and_what_decides_is_read(line: str) -> None:
    cfg = compose(*line.split())
    before, wrong, dead = payload(cfg), [], []
    for head in sorted(registry.reads(cfg.task.name) & {field.name for field in dataclasses.fields(config.root())}):
        section = getattr(cfg, head)
        if not dataclasses.is_dataclass(section):
            continue
        for path, hint, value in leaves(section, head):
            if path.startswith(("model.sets", "model.family", "model.layers", "model.width")):
                continue
            other = copy.deepcopy(cfg)
            setattr(lookup(other, path.rpartition(".")[0]), path.rpartition(".")[2], another(hint, value))
            if set(schema.check(other)) - set(schema.check(cfg)):
                continue  # refused whoever writes it
            group = next((g for g, field in CHOICE_OF.items() if field == path), path)
            is_read = reading.why(f"{group}=x", other) is None
            try:
                changed = payload(other) != before
            except (UserError, TypeError, ValueError):
                continue  # no such value here
            if changed and not is_read:
                wrong.append(path)
            if is_read and not changed and reading.decides(path) and path not in EXPLAINED:
                dead.append(path)
    assert (wrong, dead) == ([], []), "decides the result and is refused; is taken and decides nothing"
