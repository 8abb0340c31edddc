"""``task=prompts``: a behaviour's prompts, tokenised for one tokenizer. Whoever needs them first makes them; this task only asks.

The artifact holds the records, their token ids and a lint (see :mod:`circuits.data.prompts`). Its key depends on the model's
tokenizer and not on its weights, so model directories that hold the same one share their prompts. A hub model's tokenizer is
known by the model's name and commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from circuits.errors import UserError
from circuits.files import write_json
from circuits.schema import BaseConfig
from circuits.schema.behaviour import FILE, MultiToken, Unusable, multi_token, of_pictures
from circuits.schema.model import scenes_of
from circuits.store.contents import Contents
from circuits.store.kinds import Column, Kind, Layers, ModelDims
from circuits.store.labels import behaviour_and_model, readable
from circuits.tasks import _pictures

if TYPE_CHECKING:
    from circuits.data.pictures.saved import PictureSet
    from circuits.data.prompts import PromptSet
    from circuits.data.splits import Given
    from circuits.run.context import Context, Work

READS = ("model.id", "model.revision")  # its tokenizer, which enters the key by its own content
FINGERPRINT_DRAWS = 64


def wording(cfg: BaseConfig) -> Literal["embedded", "natural"]:
    """The embedded model's words where it is the model."""
    return "natural" if cfg.model.embedded is None else "embedded"


def _tokenizer_identity(cfg: BaseConfig, contents: Contents) -> str:
    if cfg.model.embedded is None:
        return contents.tokenizer(cfg.model)
    return _embedded_identity()


@lru_cache
def _embedded_identity() -> str:
    from circuits.data.behaviours.base import WORD
    from circuits.files import sha256_text
    from circuits.tiny import mixture

    return "embedded:" + sha256_text("\n".join([WORD.pattern, *mixture.words()]))


@lru_cache
def fingerprint(name: str, words: Literal["embedded", "natural"]) -> str | None:
    """A hash of a generator's first draws: it changes when the behaviour does. None when there is no such behaviour."""
    import itertools

    from circuits.data.behaviours import BEHAVIOURS
    from circuits.data.behaviours.base import Wording
    from circuits.data.prompt_records import draws
    from circuits.files import sha256_text

    if name not in BEHAVIOURS:
        return None
    behaviour = BEHAVIOURS[name]
    wordings: tuple[Wording, ...] = (
        (words, "digits") if words == "natural" and behaviour.digits is not None else (words,)
    )
    found = [r for each in wordings for r in itertools.islice(draws(behaviour, each, 0), FINGERPRINT_DRAWS)]
    return sha256_text("\n".join(f"{r.prompt}|{r.corrupt}|{r.target}|{r.foil}|{r.group}" for r in found))


def _splits(cfg: BaseConfig) -> Given | None:
    """What the config asks of a split file."""
    from circuits.data.splits import Given

    behaviour = cfg.behaviour
    if behaviour.splits is None:
        return None
    return Given(Path(behaviour.splits), behaviour.validation.value, behaviour.rehash)


def _file_problems(cfg: BaseConfig) -> tuple[str, ...]:
    from circuits.data.prompt_records import read_file
    from circuits.data.splits import assigned

    path, splits = Path(str(cfg.behaviour.path)), _splits(cfg)
    try:
        records = read_file(path)
        if splits is not None:
            assigned(records, path, splits)
    except UserError as e:
        return tuple(e.messages)
    return ()


class Prompts(Kind):
    """A behaviour's prompts for one tokenizer."""

    name = "prompts"
    version = 2
    sections = ("behaviour", "seed")
    inline = True
    pictures = True
    columns = (
        Column("n_train", "train", ".0f", exact=True),
        Column("n_test", "test", ".0f", exact=True),
        Column("n_groups", "groups", ".0f", exact=True),
        Column("n_distinct", "distinct", ".0f", exact=True),
        Column("left_out", "left out", ".0f", exact=True),
        Column("tokens_median", "tokens (median)", ".0f", exact=True),
        Column("findings", "findings", ".0f", exact=True),
    )

    def extra(self, cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
        """The tokenizer, the wording and the generator: what the prompts depend on besides the config."""
        if of_pictures(cfg.behaviour):
            return _pictures.identity(cfg, contents)
        from circuits.models.identify import directory_of

        facts: dict[str, Any] = {"tokenizer": _tokenizer_identity(cfg, contents)}
        if cfg.behaviour.chat and cfg.model.embedded is None and directory_of(cfg.model.id) is not None:
            facts["chat_template"] = contents.directory(Path(cfg.model.id), "*.jinja", "tokenizer_config.json")
        if cfg.behaviour.name != FILE:
            facts |= {"wording": wording(cfg), "generator": fingerprint(cfg.behaviour.name, wording(cfg))}
        return facts

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``ioi-gpt2``."""
        return behaviour_and_model(cfg)

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """The rule for answers of several tokens that goes without saying enters keys under its first name."""
        if of_pictures(cfg.behaviour):
            cfg = _pictures.normal(cfg)
        if cfg.behaviour.multi_token is not None:
            return cfg
        return replace(cfg, behaviour=replace(cfg.behaviour, multi_token=MultiToken.fail))

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """A file that cannot be read, a behaviour that does not exist."""
        behaviour = cfg.behaviour
        if of_pictures(behaviour):
            return _pictures.problems(cfg)
        if scenes_of(cfg.model) is not None:
            return [
                f"behaviour={behaviour.name}: model={cfg.model.id} is asked about pictures; choose behaviour=gender_bias"
            ]
        if behaviour.path is not None:
            return list(_file_problems(cfg))
        from circuits.data.behaviours import BEHAVIOURS, embedded

        if behaviour.name not in BEHAVIOURS:
            return [f"behaviour={behaviour.name}: no module circuits/data/behaviours/{behaviour.name}.py declares it"]
        if BEHAVIOURS[behaviour.name].natural_only and cfg.model.embedded is not None:
            known = " ".join(embedded())
            return [
                f"behaviour={behaviour.name}: asked of models of natural language only; choose another model, or of {known}"
            ]
        return []

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """About two kilobytes a prompt."""
        return 2000 * ((cfg.behaviour.n_samples or 1000) + (cfg.behaviour.n_test or 0)), 0

    def question(self, cfg: BaseConfig) -> str:
        """What a set of prompts is asked."""
        if of_pictures(cfg.behaviour):
            return "Which pictures are there, and what do their captions say of gender"
        return f"Are the prompts for {readable(cfg.model.id)} balanced, distinct and disjoint"

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Draw or read, tokenise, split, lint and publish."""
        if of_pictures(context.cfg.behaviour):
            _pictures.make(context, *works.values())
            return
        from circuits.data import prompt_build, prompts
        from circuits.data.prompt_tokens import Encoder

        (work,), behaviour, seed = works.values(), context.cfg.behaviour, context.cfg.seed
        with context.phase("making the prompts"):
            tokenizer, vocabulary = _tokenizer(context.run.cfg, context.run.contents)
            encoder = Encoder(tokenizer, behaviour.bos.value, behaviour.chat)
            wanted = prompt_build.Wanted(
                behaviour.n_samples, behaviour.n_test, seed, multi_token(behaviour).value, behaviour.allow_small,
                drop_unusable=behaviour.unusable is Unusable.drop,
            )  # fmt: skip
            if behaviour.path is not None:
                built = prompt_build.from_file(Path(behaviour.path), encoder, wanted, _splits(context.cfg))
            else:
                built = prompt_build.from_behaviour(behaviour.name, wording(context.run.cfg), encoder, wanted)
            meta = {
                "bos": encoder.bos,
                "chat": encoder.chat,
                "vocabulary": vocabulary,
                "tokenizer": type(tokenizer).__name__,
            }
            made = prompts.PromptSet(built.prompts, meta)
            made.check_vocabulary(vocabulary, context.run.cfg.model.id)

        def write(out: Path) -> None:
            prompts.write(out, built.prompts, meta)
            write_json(out / "lint.json", built.lint)
            write_json(out / "metrics.json", built.metrics)

        artifact = work.commit(write, dropped={"rows": built.metrics["left_out"], **built.lint["left_out"]["reasons"]})
        for line in built.lint["findings"]:
            context.say(f"lint: {line}")
        context.say(f"{built.metrics['n_train']} training and {built.metrics['n_test']} test prompts: {artifact.id}")

    def load(self, path: Path) -> PromptSet | PictureSet:
        """The prompts, or the pictures."""
        from circuits.data import prompts
        from circuits.data.pictures import saved

        return saved.read(path) if (path / saved.PICTURES).exists() else prompts.read(path)


KIND = Prompts()
run = KIND.run


def _tokenizer(cfg: BaseConfig, contents: Contents) -> tuple[Any, int]:
    """The model's tokenizer, and how many ids the model embeds. The embedded model need not be trained for that."""
    if cfg.model.embedded is not None:
        from circuits.tiny.spec import TinySpec, vocabulary
        from circuits.tiny.tokenizer import build_tokenizer

        return build_tokenizer(vocabulary(), TinySpec().max_positions), len(vocabulary())
    from circuits.models.identify import inspect_model, local_files
    from circuits.models.load import load_tokenizer

    facts = contents.model(cfg.model).facts
    return load_tokenizer(local_files(inspect_model(cfg.model.id, facts.revision))), facts.dims.vocab
