"""The plan of the headline: the cells of a configuration, and the stages that each builds on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from headline_cells import MEASURES, PAIRED, Place, compare, measure
from headline_config import Config, Method, slug
from headline_stages import (
    Stage,
    choose,
    fill,
    first_of,
    identity,
    last_model,
    load_pools,
    load_views,
    means,
    named,
    run,
    train,
)

from hf_calib import predict_options
from hf_calib.data.questions import permute_options
from hf_calib.evaluation.tables import write_json
from hf_calib.inference.model_loading import load_tokenizer
from hf_calib.posthoc import PostHocCalibrator, TransferredTemperature


class Asked(NamedTuple):
    """A model to evaluate: its folder, the stage that trained it (`None`: given), the folder of its answers."""

    path: str
    training: Stage | None
    folder: Path


@dataclass(eq=False)
class Plan:
    """
    All stages and cells of a configuration.

    Args:
        config ([`Config`]):
            Configuration.
        output_dir (`Path`):
            Folder of everything.
    """

    config: Config
    output_dir: Path
    _stages: dict[Path, Stage] = field(default_factory=dict)

    def cells(self, methods: Sequence[str] | None = None) -> dict[Place, dict[str, Stage]]:
        """
        The stages that measure the methods (all by default), by place and method; each leaves a measures.json. The
        tests of one trained model stand next to each other.
        """
        config, cells = self.config, {}
        for seed, model, source, budget in product(config.seeds, config.models, config.datasets, config.budgets):
            for name in methods or config.methods:
                for test in config.datasets if self._applies(config.methods[name], model) else ():
                    place = Place(model, source, budget, test, seed)
                    cells.setdefault(place, {})[name] = self._measured(place, name)
        return cells

    def comparisons(self, cells: Mapping[Place, Mapping[str, Stage]]) -> dict[Place, dict[str, Stage]]:
        """The stages that compare ours with each baseline on the same questions; each leaves a differences.json."""
        ours, comparisons = self.config.ours, {}
        for place, found in cells.items():
            for other in self.config.baselines:
                if ours in found and other in found:
                    comparisons.setdefault(place, {})[other] = self._compared(place, ours, other)
        return comparisons

    def _applies(self, method: Method, model: str) -> bool:
        needs_reference = method.calibrator is not None and not PostHocCalibrator.kinds[method.calibrator].supervised
        return not needs_reference or self.config.models[model].reference is not None

    # Stages: each is described where it is asked for, and made once.

    def _stage(self, folder: Path, *description) -> Stage:
        return self._stages.setdefault(folder, Stage(folder, *description))

    def _measured(self, place: Place, name: str) -> Stage:
        predicted, part = self._predicted(place, name)

        def work(out: Path) -> None:
            write_json(out / "measures.json", measure(load_views(predicted, part)))

        folder = self._folder(place, name) / f"measured-{slug(place.test)}"
        return self._stage(folder, "measure", MEASURES, work, (predicted,))

    def _compared(self, place: Place, ours: str, other: str) -> Stage:
        sides = [self._predicted(place, name) for name in (ours, other)]

        def work(out: Path) -> None:
            write_json(out / "differences.json", compare(*(load_views(*side) for side in sides)))

        folder = self._folder(place, ours) / f"less-{slug(other)}-{slug(place.test)}"
        return self._stage(folder, "compare", PAIRED, work, tuple(stage for stage, _ in sides))

    def _predicted(self, place: Place, name: str) -> tuple[Stage, str]:
        """The stage that a method's answers to a test come from, and their folder in its own."""
        method = self.config.methods[name]
        if method.recipe and not method.calibrator:
            return self._tested(
                self._trained(place, name), self._normalizations(method)[0], place.seed, place.test
            ), "."
        return self._calibrated(place, name), slug(place.test)

    def _trained(self, place: Place, name: str) -> Asked:
        method, folder = self.config.methods[name], self._folder(place, name)
        if method.folds is None:
            training = self._training(place, name, folder / "model")
        else:
            parts = tuple(
                self._training(place, name, folder / f"fold-{fold}", em_holdout=1 / method.folds, em_fold=fold)
                for fold in range(method.folds)
            )

            def work(out: Path) -> None:
                run(["average", "--models", *(str(part.folder) for part in parts), "--output_dir", str(out)])

            training = self._stage(folder / "model", f"average {name}", method.folds, work, parts)
        return Asked(str(folder / "model"), training, folder)

    def _training(self, place: Place, name: str, folder: Path, **more) -> Stage:
        """One run of a method's recipe; `more` are arguments that nothing in the configuration overrides."""
        model, source, budget, _, seed = place
        method = self.config.methods[name]
        given = {"model_name_or_path": "{model}", "dataset_name": "{labels}", "save_strategy": "no", "seed": seed}
        arguments = method.arguments(budget, **given, **self.config.asking) | more
        path = self.config.models[model].path
        made_of = [arguments, method.hold_out, budget, self._source_identity(source, "labels"), identity(path)]

        def work(out: Path) -> None:
            labels = out / "labels.parquet"
            self._divided(method, seed, source, budget)[0].to_parquet(labels)
            places = {"labels": str(labels), "model": path}
            if "{unlabelled}" in str(arguments):
                places["unlabelled"] = str(out / "unlabelled.parquet")
                self._pools(source)[0].remove_columns("answer").to_parquet(places["unlabelled"])
            train(fill(arguments, places), out)

        return self._stage(folder, f"train {name}, {budget:,} labels", made_of, work)

    def _calibrated(self, place: Place, name: str) -> Stage:
        """The predictions of a calibrator, or of the model as it is, for all tests."""
        model, source, budget, _, seed = place
        config, method = self.config, self.config.methods[name]
        names, most = self._normalizations(method), max(config.budgets)
        supervised = method.calibrator is None or PostHocCalibrator.kinds[method.calibrator].supervised
        references = {}
        voted = self._votes(model, seed, source) if method.transferred else {}
        if method.recipe or method.of:
            divided = method.of or name
            asked, what = self._trained(place, divided), "held-out"

            def questions() -> Dataset:
                return self._divided(config.methods[divided], seed, source, budget)[1]
        else:
            # Smaller budgets are the beginning of the largest.
            asked, what = self._untrained(model, config.models[model].path), f"{most}-labels-seed-{seed}"

            def questions() -> Dataset:
                return self._labels(seed, source, most)

            if not supervised:
                before = self._untrained(f"{model}-reference", config.models[model].reference)
                references = {n: self._asked(before, n, seed, source, what, questions) for n in names}
        if what == "held-out" and config.methods[divided].folds:
            fitted = {n: self._held_out_in_turn(asked, n) for n in names}
        else:
            fitted = {n: self._asked(asked, n, seed, source, what, questions) for n in names}
        tested = {(n, test): self._tested(asked, n, seed, test) for n in names for test in config.datasets}

        def work(out: Path) -> None:
            known, before = (
                {n: first_of(load_views(stage)[0], budget if supervised else most) for n, stage in stages.items()}
                for stages in (fitted, references)
            )
            kind = "temperature" if method.transferred else method.calibrator
            option_normalization, calibrator = choose(known, kind, before, seed)
            if calibrator is not None and not method.transferred:
                calibrator.save(out)
            chosen = {"option_normalization": option_normalization, "n": len(known[option_normalization])}
            write_json(out / "chosen.json", chosen)
            votes = {asked: load_views(stage)[0].votes for asked, stage in voted.items()}
            for test in config.datasets:
                for view, predictions in enumerate(load_views(tested[option_normalization, test])):
                    if method.transferred:
                        labelled = known[option_normalization]
                        calibrator = TransferredTemperature().fit(
                            labelled.option_logits,
                            labelled.labels,
                            votes[None][:budget],
                            predictions.option_logits,
                            votes[test],
                        )
                        calibrator.save(out / slug(test))
                    after = predictions if calibrator is None else predictions.recalibrated(calibrator)
                    after.save(out / slug(test) / f"{view}.npz")

        folder = self._folder(place, name) / "calibrated"
        needs = (*fitted.values(), *references.values(), *tested.values(), *voted.values())
        made_of = [method.calibrator, budget if supervised else most, seed]
        return self._stage(folder, f"calibrate {name}", made_of, work, needs)

    def _held_out_in_turn(self, asked: Asked, option_normalization: str) -> Stage:
        """What the models of a cross-fit made of the labels: each of those that it was not trained on."""

        def work(out: Path) -> None:
            shutil.copy2(Path(asked.path, "held_out", "predictions.npz"), out / "0.npz")

        return self._stage(
            asked.folder / option_normalization / "held-out", "collect what was held out", [], work, (asked.training,)
        )

    def _votes(self, model: str, seed: int, source: str) -> dict[str | None, Stage]:
        """The untrained model's answers, with votes: to the most labels (at `None`), and to every test."""
        asked, most = self._untrained(model, self.config.models[model].path), max(self.config.budgets)
        labels = self._asked(
            asked, "sum", seed, source, f"{most}-labels-seed-{seed}", lambda: self._labels(seed, source, most)
        )
        return {None: labels, **{test: self._tested(asked, "sum", seed, test) for test in self.config.datasets}}

    def _untrained(self, name: str, path: str) -> Asked:
        return Asked(path, None, self.output_dir / slug(name))

    def _tested(self, asked: Asked, option_normalization: str, seed: int, test: str) -> Stage:
        """What a model makes of the questions of a test, in every order of their options."""
        views = self.config.permutations
        return self._asked(asked, option_normalization, seed, test, "test", lambda: self._pools(test)[1], views)

    def _asked(
        self,
        asked: Asked,
        option_normalization: str,
        seed: int,
        source: str,
        what: str,
        questions: Callable,
        views: int = 1,
    ) -> Stage:
        config, training = self.config, asked.training
        made_of = [what, views, option_normalization, config.asking, self._source_identity(source, what)]
        made_of += [identity(asked.path) if training is None else None]
        votes = training is None and any(method.transferred for method in config.methods.values())
        made_of += ["votes"] * votes
        needs = (training,) if training else ()
        summed = None
        if option_normalization == "mean" and training is None and "sum" in config.normalizations:
            # An untrained model is asked by both: once will do.
            summed = self._asked(asked, "sum", seed, source, what, questions, views)
            needs = (summed,)

        def work(out: Path) -> None:
            path, rows = asked.path, questions()
            for view in range(views):
                turned, file = permute_options(rows, view) if view else rows, out / f"{view}.npz"
                if summed is not None:
                    means(load_views(summed)[view], load_tokenizer(path), turned, config.prompt_format()).save(file)
                    continue
                model, tokenizer = last_model(path, training.key if training else "")
                predict_options(
                    model,
                    tokenizer,
                    turned,
                    prompt_format=config.prompt_format(),
                    option_normalization=option_normalization,
                    batch_size=config.batch_size,
                    output_path=file,
                    votes=votes,
                )

        folder = asked.folder / option_normalization / f"{slug(source)}-{what}"
        kind = "trained" if training else "untrained"
        return self._stage(folder, f"ask {kind}: {source}, {what.partition('-seed')[0]}", made_of, work, needs)

    # Questions

    def _pools(self, name: str) -> tuple[Dataset, Dataset]:
        """What labels are drawn from, and the test questions."""
        source = self.config.datasets[name]
        return load_pools(source)

    def _labels(self, seed: int, name: str, count: int) -> Dataset:
        pool = self._pools(name)[0].shuffle(seed=seed)
        if count > len(pool):
            raise ValueError(
                f"{name} has {len(pool)} questions to draw labels from, fewer than the budget of {count}."
            )
        return pool.select(range(count))

    def _divided(self, method: Method, seed: int, source: str, budget: int) -> tuple[Dataset, Dataset]:
        """The labels that a recipe gets, and those of them or beside them that no gradient sees."""
        from hf_calib.trainers.e_step import EMArguments, hold_out

        known = {item.name for item in fields(EMArguments)}
        given = {"em_holdout": method.hold_out} if method.hold_out else method.arguments(budget)
        arguments = EMArguments(**{name: value for name, value in given.items() if name in known})
        arguments.seed = seed
        labels = self._labels(seed, source, budget)
        # The trainer, too, mixes the questions of a recipe by the seed before it holds some out.
        mixed = labels.shuffle(seed=seed)
        kept, held_out = hold_out(mixed, mixed["question"], arguments, "labels")
        return kept if method.hold_out else labels, held_out

    def _source_identity(self, name: str, what: str) -> dict[str, Any]:
        """What decides the questions of a source: of its test, or those that labels are drawn from."""
        source = self.config.datasets[name]
        known = {**vars(source), **{part: identity(path) for part, path in named(source).items()}}
        if what != "test":
            del known["num_test"]
        elif source.train is not None:
            del known["train"], known["train_split"]
        return known

    def _normalizations(self, method: Method) -> list[str]:
        trained = self.config.methods[method.of] if method.of else method
        if trained.recipe:
            return [trained.arguments(self.config.budgets[0]).get("option_normalization", "sum")]
        return [method.option_normalization] if method.option_normalization else self.config.normalizations

    def _folder(self, place: Place, name: str) -> Path:
        labels = f"{slug(place.source)}-{place.budget}"
        return self.output_dir / f"seed-{place.seed}" / slug(place.model) / labels / slug(name)
