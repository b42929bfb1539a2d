"""Estimate the measures of an alignment report, with intervals, from what was measured of each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import exp, nan
from pathlib import Path

import numpy as np

from ..inference.generic_texts import GenericText
from ..inference.predictions import save_npz
from ..inference.text_scores import TextComparison
from ..measures.bootstrap import Estimate, ResampledMeans
from .alignment_report import ALIGNED, REFERENCE


Measures = dict[str, dict[str, Estimate]]  # of each model, by name


@dataclass(frozen=True)
class Behaviour:
    """
    What was measured of one model.

    Args:
        texts (`list[GenericText]`):
            A text of the model for each prompt.
        comparison ([`~hf_calib.inference.text_scores.TextComparison`]):
            Comparison with the aligned model on its texts.
        pair_scores (`np.ndarray` of shape `(N, 2)`, *optional*):
            Log-likelihoods of the chosen and the rejected completions.
        text_losses (`np.ndarray` of shape `(M,)`, *optional*):
            Negative log-likelihood of each given text.
    """

    texts: list[GenericText]
    comparison: TextComparison
    pair_scores: np.ndarray | None = None
    text_losses: np.ndarray | None = None

    def save(self, path: Path, key: str) -> None:
        """Save the behaviour with a key that tells what it is of."""
        arrays = {
            "key": np.array(key),
            "input_ids": np.array([token for text in self.texts for token in text.input_ids]),
            "lengths": np.array([len(text.input_ids) for text in self.texts]),
            "starts": np.array([text.start for text in self.texts]),
            "ended": np.array([text.ended for text in self.texts]),
            "comparison": np.array(self.comparison.rows()),
        }
        optional = {"pair_scores": self.pair_scores, "text_losses": self.text_losses}
        save_npz(path, arrays | {name: array for name, array in optional.items() if array is not None})

    @classmethod
    def load(cls, path: Path, key: str) -> Behaviour | None:
        """Load a behaviour; `None` if it was saved with another key."""
        with np.load(path) as arrays:
            if str(arrays["key"]) != key:
                return None
            parts = np.split(arrays["input_ids"], np.cumsum(arrays["lengths"])[:-1])
            texts = [
                GenericText(tuple(ids.tolist()), int(start), bool(ended))
                for ids, start, ended in zip(parts, arrays["starts"], arrays["ended"], strict=True)
            ]
            optional = {name: arrays[name] for name in ("pair_scores", "text_losses") if name in arrays}
            return cls(texts, TextComparison(*arrays["comparison"].T), **optional)


@dataclass(frozen=True)
class Estimator:
    """
    Estimates measures by the Bayesian bootstrap over pairs, prompts or texts, with the same draws for all models.

    Args:
        behaviours (`Mapping[str, Behaviour]`):
            What was measured of each model.
        n_bootstrap (`int`):
            Number of draws.
        seed (`int`):
            Seed of the draws.
    """

    behaviours: Mapping[str, Behaviour]
    n_bootstrap: int
    seed: int

    @property
    def names(self) -> list[str]:
        """Names of the models: reference, aligned, then the repaired ones."""
        return sorted(self.behaviours, key=lambda name: (name != REFERENCE, name != ALIGNED))

    @property
    def margin_kind(self) -> str:
        """What the margin is; see [`~hf_calib.evaluation.alignment_report.AlignmentReport`]."""
        return "implicit_reward" if REFERENCE in self.behaviours else "log_ratio"

    @cached_property
    def scored_pairs(self) -> np.ndarray:
        """Whether every model scored a pair, `(N,)`."""
        scores = [behaviour.pair_scores for behaviour in self.behaviours.values()]
        kept = np.isfinite(scores).all(axis=(0, 2))
        if not kept.any():
            raise ValueError("every pair is longer than the models' context (or max_length).")
        return kept

    def pair_measures(self) -> Measures:
        """Accuracies, margins and margin retention."""
        ratios = {name: self.behaviours[name].pair_scores[self.scored_pairs] @ [1.0, -1.0] for name in self.names}
        wins = {f"{name}/pair_accuracy": ratio > 0 for name, ratio in ratios.items()}
        margins = ratios
        if REFERENCE in ratios:
            margins = {name: ratio - ratios[REFERENCE] for name, ratio in ratios.items() if name != REFERENCE}
            wins |= {f"{name}/reward_accuracy": margin > 0 for name, margin in margins.items()}
        shares, means = self._means(wins, binary=True), self._means(margins)
        measures: Measures = {name: {} for name in ratios}
        for key in wins:
            name, _, measure = key.rpartition("/")
            measures[name][measure] = shares.estimate(key)
        aligned = means.estimate(ALIGNED)
        for name in margins:
            measures[name]["margin"] = means.estimate(name)
            if name != ALIGNED:
                ratio = means.ratio(name, ALIGNED) if aligned.low > 0 else Estimate(nan, nan, nan)
                measures[name]["margin_retention"] = ratio
        return measures

    def text_measures(self) -> Measures:
        """Divergence from the aligned model and agreement with it, length and share of the texts that end."""
        ended, sums = {}, {"tokens": self.behaviours[ALIGNED].comparison.tokens}
        for name in self.names:
            found = self.behaviours[name]
            ended[name] = [text.ended for text in found.texts]
            sums[f"{name}/length"] = [len(text) for text in found.texts]
            sums[f"{name}/kl_per_token"] = found.comparison.divergence
            sums[f"{name}/top1_agreement"] = found.comparison.agreement
        means, shares, measures = self._means(sums), self._means(ended, binary=True), {}
        for name in self.names:
            ratios = () if name == ALIGNED else ("kl_per_token", "top1_agreement")
            measures[name] = {key: means.ratio(f"{name}/{key}", "tokens") for key in ratios}
            measures[name] |= {"length": means.estimate(f"{name}/length"), "end_rate": shares.estimate(name)}
        return measures

    def perplexities(self, tokens: np.ndarray | None = None) -> Measures:
        """
        Perplexity, and its ratio to that of the aligned model.

        Args:
            tokens (`np.ndarray` of shape `(M,)`, *optional*):
                Number of predicted tokens of each given text. By default the texts are those of the aligned model.
        """
        losses = {name: self.behaviours[name].text_losses for name in self.names}
        if tokens is None:
            tokens = self.behaviours[ALIGNED].comparison.tokens
            losses = {name: self.behaviours[name].comparison.losses for name in self.names}
        changes = {f"change/{name}": loss - losses[ALIGNED] for name, loss in losses.items()}
        means, measures = self._means({"tokens": tokens, **losses, **changes}), {}
        for name in self.names:
            measures[name] = {"perplexity": _exp(means.ratio(name, "tokens"))}
            if name != ALIGNED:
                measures[name]["perplexity_ratio"] = _exp(means.ratio(f"change/{name}", "tokens"))
        return measures

    def _means(self, quantities: Mapping[str, np.ndarray | list], binary: bool = False) -> ResampledMeans:
        """Means over units, resampled; `quantities` have the shape `(N,)`."""
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in quantities.items()}
        n = len(next(iter(arrays.values())))
        return ResampledMeans([arrays], n, tuple(arrays) if binary else (), self.n_bootstrap, self.seed)


def _exp(estimate: Estimate) -> Estimate:
    return Estimate(*map(exp, estimate))
