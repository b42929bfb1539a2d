"""The configuration of the headline: models, data sets, methods, budgets, seeds and bars, checked."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hf_calib.data.prompts import PromptArguments, PromptFormat
from hf_calib.paths import recipe_path
from hf_calib.posthoc import METHODS as CALIBRATORS
from hf_calib.posthoc import TransferredTemperature


NORMALIZATIONS = ("sum", "mean")
STATISTICS = ("ratio", "difference", "share_below")


@dataclass(frozen=True)
class Model:
    """
    Args:
        path (`str`):
            Model to be calibrated.
        reference (`str`, *optional*):
            The model before its alignment, for the temperature without labels.
    """

    path: str
    reference: str | None = None


@dataclass(frozen=True)
class Source:
    """
    Args:
        test (`str`):
            Questions: a file, a folder, or a name on the Hub, as everywhere.
        train (`str`, *optional*):
            Questions that labels are drawn from. Without it, `num_train` of the test questions are set aside for that.
        num_train (`int`, *optional*):
            Set aside so many.
        num_test (`int`, *optional*):
            Test on so many, always the same; on all by default.
        subject (`str` or `list[str]`, *optional*):
            Take the questions of these subjects alone.
        train_split (`str`, *optional*, defaults to `"train"`), test_split (`str`, *optional*, defaults to `"test"`):
            Splits.
    """

    test: str
    train: str | None = None
    num_train: int | None = None
    num_test: int | None = None
    subject: str | tuple[str, ...] | None = None
    train_split: str = "train"
    test_split: str = "test"

    def __post_init__(self):
        if (self.train is None) == (self.num_train is None):
            raise ValueError(
                "give either train, the questions labels are drawn from, or num_train, how many to set aside"
            )
        if isinstance(self.subject, list):
            object.__setattr__(self, "subject", tuple(self.subject))


@dataclass(frozen=True)
class Method:
    """
    A method is a recipe that trains, a calibrator that is fitted, or both; the model as it is, where it is neither.

    Args:
        recipe (`str`, *optional*):
            Recipe, by its path in recipes/ or elsewhere.
        set (`dict`, *optional*):
            Arguments of the recipe to change. `{labels}` and `{model}` in texts are filled in, and `{unlabelled}`: a
            file of all questions that labels are drawn from, without their answers.
        budgets (`dict[int, dict]`, *optional*):
            More of them, for a number of labels.
        hold_out (`float`, *optional*):
            Share of the labels that training does not get, for the calibrator.
        folds (`int`, *optional*):
            Cross-fit: train so many models, each without another part of the labels (of the recipe's E-step), and
            average them. A calibrator is fitted on what each made of its own part.
        of (`str`, *optional*):
            Take the model that this other method has trained.
        calibrator (`str`, *optional*):
            Post-hoc method, by its name in `hf_calib.posthoc`. It is fitted on all labels; of a model that was trained
            on them, on those held out from training: `hold_out`, or else the rows of the recipe's E-step.
            `transferred_temperature` is fitted for each test anew, on these labels and on that test's questions
            without theirs.
        option_normalization (`str`, *optional*):
            Of a model that is not trained: `"sum"` or `"mean"`, whatever the labels prefer.
    """

    recipe: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    budgets: dict[int, dict[str, Any]] = field(default_factory=dict)
    hold_out: float | None = None
    folds: int | None = None
    of: str | None = None
    calibrator: str | None = None
    option_normalization: str | None = None

    def __post_init__(self):
        kinds = (*CALIBRATORS, TransferredTemperature.method)
        if self.calibrator is not None and self.calibrator not in kinds:
            raise ValueError(f"calibrator {self.calibrator!r} is none of {', '.join(kinds)}")
        if self.recipe and self.of:
            raise ValueError("recipe trains a model and `of` takes another's: give one of them")
        if self.option_normalization is not None and (
            self.recipe or self.of or self.option_normalization not in NORMALIZATIONS
        ):
            raise ValueError(
                f"option_normalization={self.option_normalization!r}: sum or mean is wanted, of a model that is not "
                f"trained"
            )
        if (self.set or self.budgets or self.hold_out or self.folds) and not self.recipe:
            raise ValueError("set, budgets, hold_out and folds belong to a recipe, and there is none")
        if self.hold_out is not None and not 0 < self.hold_out < 1:
            raise ValueError(f"hold_out={self.hold_out}: a share between 0 and 1 is wanted")
        if self.folds is not None and (self.folds < 2 or self.hold_out):
            raise ValueError(f"folds={self.folds}: at least 2 are wanted, and no hold_out beside them")

    @property
    def transferred(self) -> bool:
        """Whether the calibrator wants votes, and the questions that it is for."""
        return self.calibrator == TransferredTemperature.method

    def arguments(self, budget: int, **given) -> dict[str, Any]:
        """The recipe's arguments, under those `given`, under the method's own changes; nothing is filled in yet."""
        path = Path(self.recipe) if Path(self.recipe).is_file() else recipe_path(self.recipe)
        recipe = yaml.safe_load(path.read_text())
        for name in ("limit", "option_limit", "dataset_config"):
            recipe.pop(name, None)  # the labels are a file of as many questions as there should be
        return recipe | given | self.set | self.budgets.get(budget, {})

    def has_e_step(self, budget: int) -> bool:
        """Whether the recipe holds questions out from training, for its E-step."""
        arguments = self.arguments(budget)
        if arguments.get("em_holdout") == 0 or arguments.get("em_preset") is not None:
            return False
        if arguments.get("trainer") == "calibrated_dpo":
            return arguments.get("lambda_options", 0) > 0
        if arguments.get("objective", "rcft") == "cft":
            return False
        return arguments.get("lambda_ece", 1) > 0


@dataclass(frozen=True)
class Bar:
    """
    A threshold for a figure of the whole run, which is a mean over all cells that `where` picks.

    Args:
        name (`str`):
            What it is called.
        measure (`str` or `list[str]`):
            Measure of each cell.
        statistic (`str`):
            `"ratio"` (mean of ours over all cells, over the mean of the better baseline of each), `"difference"` (ours
            less the original), or `"share_below"` (of the cells in which ours is below every baseline, in all measures
            named).
        at_most (`float`, *optional*), at_least (`float`, *optional*):
            Threshold: one of them.
        where (`dict`, *optional*):
            `budget` (a number or several), `domain` (`"in"` or `"out"`).
        ours (`str`, *optional*), against (`list[str]`, *optional*):
            Other methods to compare than those of the whole run.
    """

    name: str
    measure: str | list[str]
    statistic: str
    at_most: float | None = None
    at_least: float | None = None
    where: dict[str, Any] = field(default_factory=dict)
    ours: str | None = None
    against: list[str] | None = None

    def __post_init__(self):
        if self.statistic not in STATISTICS:
            raise ValueError(f"statistic {self.statistic!r} is none of {', '.join(STATISTICS)}")
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give either at_most or at_least")
        if unknown := set(self.where) - {"budget", "domain"}:
            raise ValueError(f"where has no {', '.join(sorted(unknown))}; there are budget and domain")
        if self.statistic == "ratio" and len(self.measures) > 1:
            raise ValueError(f"a ratio is of one measure, not of {', '.join(self.measures)}")

    @property
    def measures(self) -> list[str]:
        return [self.measure] if isinstance(self.measure, str) else self.measure


@dataclass(frozen=True)
class Config:
    """
    Args:
        title (`str`), notes (`str`, *optional*):
            Of the report.
        models (`dict[str, Model]`), datasets (`dict[str, Source]`), methods (`dict[str, Method]`):
            By name.
        budgets (`list[int]`):
            Numbers of labels.
        seeds (`list[int]`):
            Each draws its own labels, and seeds all training.
        ours (`str`), baselines (`list[str]`), original (`str`):
            Methods that the comparisons and bars are about.
        asking (`dict`, *optional*):
            How questions are asked, everywhere: `scoring`, `use_chat_template`, `prompt_template`, `system_prompt`.
        normalizations (`list[str]`, *optional*, defaults to `["sum"]`):
            Normalisations that a method without training chooses from, inside the labels.
        permutations (`int`, *optional*, defaults to `1`):
            Ask every test question in so many cyclic orders of its options and average; for letters.
        batch_size (`int`, *optional*, defaults to `16`):
            Questions in a forward pass.
        bars (`list[Bar]`, *optional*):
            Thresholds.
    """

    title: str
    models: dict[str, Model]
    datasets: dict[str, Source]
    methods: dict[str, Method]
    budgets: list[int]
    seeds: list[int]
    ours: str
    baselines: list[str]
    original: str
    notes: str = ""
    asking: dict[str, Any] = field(default_factory=dict)
    normalizations: list[str] = field(default_factory=lambda: ["sum"])
    permutations: int = 1
    batch_size: int = 16
    bars: list[Bar] = field(default_factory=list)

    def __post_init__(self):
        for section in ("models", "datasets", "methods"):
            folders = [slug(name) for name in getattr(self, section)]
            if twice := [name for name in getattr(self, section) if folders.count(slug(name)) > 1]:
                raise ValueError(
                    f"{section}: {' and '.join(twice)} would share the folder {slug(twice[0])}; rename one"
                )
        if unknown := set(self.normalizations).difference(NORMALIZATIONS):
            raise ValueError(f"normalizations: {', '.join(unknown)} is neither sum nor mean")
        asked = {item.name for item in fields(PromptArguments)} - {"option_normalization"}
        if unknown := set(self.asking) - asked:
            raise ValueError(f"asking: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(asked))}")
        for name in [self.ours, self.original, *self.baselines, *(m.of for m in self.methods.values() if m.of)]:
            if name not in self.methods:
                raise ValueError(f"methods: there is no {name!r} among {', '.join(self.methods)}")
        for name, method in self.methods.items():
            trained = self.methods[method.of] if method.of else method
            if method.of and not trained.recipe:
                raise ValueError(
                    f"methods: {name} takes the model of {method.of}, which has no recipe that trains one"
                )
            if method.of and not method.calibrator:
                raise ValueError(f"methods: {name} is {method.of} again; give it a calibrator")
            holds_out = not trained.recipe or all(trained.has_e_step(budget) for budget in self.budgets)
            if trained.folds and not holds_out:
                raise ValueError(
                    f"methods: the models of {name} would be the same: folds wants a recipe with an E-step"
                )
            if method.calibrator and not (trained.hold_out or holds_out):
                raise ValueError(
                    f"methods: {name} has no labels to fit its calibrator on that training has not seen: give hold_out"
                )

    def prompt_format(self) -> PromptFormat:
        return PromptArguments(**self.asking).prompt_format()


def slug(name: str) -> str:
    """A name as that of a folder: `"RCFT (paper)"` is `"rcft-paper"`."""
    return re.sub(r"[^\w.+]+", "-", name.lower()).strip("-")


_SECTIONS = {"models": Model, "datasets": Source, "methods": Method}


def read_config(path: Path, changes: list[str] = ()) -> Config:
    """
    The configuration in a file.

    Args:
        path (`Path`):
            YAML file.
        changes (`list[str]`, *optional*):
            `KEY=VALUE` with a dotted key and a value in YAML, as in `datasets.ARC-Easy.train=questions.parquet`.

    Raises:
        `ValueError`: names the entry at fault.
    """
    raw = yaml.safe_load(path.read_text())
    for change in changes:
        key, found, value = change.partition("=")
        if not found:
            raise ValueError(f"--set {change}: KEY=VALUE is wanted, as in --set seeds=[0,1]")
        raw = _changed(raw, key.split("."), yaml.safe_load(value))
    for section, kind in _SECTIONS.items():
        entries = raw.get(section) or {}
        raw[section] = {name: _built(kind, entry or {}, f"{section}.{name}") for name, entry in entries.items()}
    raw["bars"] = [_built(Bar, entry, f"bars.{entry.get('name')}") for entry in raw.get("bars") or []]
    return _built(Config, raw, str(path))


def _changed(entry: dict | None, keys: list[str], value: Any) -> dict:
    """The entry with another value; not in place, for entries may share an anchor of YAML."""
    first, *rest = keys
    key, entry = int(first) if first.isdigit() else first, entry or {}
    return {**entry, key: _changed(entry.get(key), rest, value) if rest else value}


def _built(kind: type, entry: dict[str, Any], where: str):
    known = {item.name for item in fields(kind)}
    if unknown := set(entry) - known:
        raise ValueError(f"{where}: there is no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    wanted = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if missing := wanted - set(entry):
        raise ValueError(f"{where}: {', '.join(sorted(missing))} is missing")
    try:
        return kind(**entry)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
