"""Candidate changes to RCFT that were not adopted. rcft_variants.py measures them."""

from collections import deque

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from hf_calib import CalibratedSFTTrainer, EMCalibrator, calibration_report
from hf_calib.posthoc import TemperatureScaling


DUAL_RATE = 10.0  # of the weight, for an ECE of 1 above its floor
WINDOW = 400  # questions
MIXUP_ALPHA = 0.4
GRID = 64  # confidences at which a Venn-Abers map is computed


class DualWeight(CalibratedSFTTrainer):
    """Set the weight of EM-ECE by dual ascent: up while the ECE of the E-step is above its noise floor, else down."""

    def _fit_map(self, kind, probabilities, truth):
        super()._fit_map(kind, probabilities, truth)
        report = calibration_report(probabilities.numpy(), truth.numpy(), n_bootstrap=100)
        excess = report["ece"] - report["ece_noise_floor"]
        self.args.lambda_ece = max(self.args.lambda_ece + DUAL_RATE * excess, 1e-6)


class MovingWindow(CalibratedSFTTrainer):
    """Fit the map on the last training questions, as answered at their step. No question is held out."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.window = deque(maxlen=WINDOW // self.args.per_device_train_batch_size)

    def compute_option_loss(self, option_logits, labels, mask):
        self.window.append((option_logits.detach().softmax(-1), labels))
        return super().compute_option_loss(option_logits, labels, mask)

    def e_step(self, kinds=None):
        if self.window:
            self._fit_map("options", *map(torch.cat, zip(*self.window, strict=True)))
        else:
            super().e_step(kinds)


class Mixup(CalibratedSFTTrainer):
    """Beside the likelihood: the cross-entropy of option logits mixed between two questions, to labels mixed alike."""

    def compute_option_loss(self, option_logits, labels, mask):
        loss = super().compute_option_loss(option_logits, labels, mask)
        share, other = np.random.beta(MIXUP_ALPHA, MIXUP_ALPHA), torch.randperm(len(labels))
        mixed = (share * option_logits + (1 - share) * option_logits[other]).log_softmax(-1)
        for part, answers in ((share, labels), (1 - share, labels[other])):
            loss = loss + part * torch.nn.functional.nll_loss(mixed, answers, reduction="sum")
        return loss


class StopOnRefinement(CalibratedSFTTrainer):
    """Keep the weights of the E-step with the least NLL under the best temperature (arXiv 2501.19195)."""

    least = np.inf

    def _fit_map(self, kind, probabilities, truth):
        super()._fit_map(kind, probabilities, truth)
        log_probabilities, rows = probabilities.clamp(min=1e-12).log().numpy(), np.arange(len(truth))
        calibrated = TemperatureScaling().fit(log_probabilities, truth).transform(log_probabilities)
        if (refinement := -np.log(calibrated[rows, truth]).mean()) < self.least:
            self.least = refinement
            self.kept = {name: weight.clone() for name, weight in self.model.state_dict().items()}

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        self.e_step()
        self.model.load_state_dict(self.kept)
        return output


class WithCalibrator(CalibratedSFTTrainer):
    """Another calibration map."""

    kind: type[EMCalibrator]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calibrators = {"options": self.kind()}


class ClasswiseTargets(WithCalibrator):
    """Fit one map for the probabilities of all options; targets are its values divided by their sum."""

    class kind(EMCalibrator):
        def fit(self, probabilities, labels):
            right = torch.nn.functional.one_hot(labels, probabilities.size(1)).numpy()
            there = (flat := probabilities.numpy().astype(np.float64).ravel()) > 0
            self._abscissae, self._ordinates = self._fit_isotonic(flat[there], right.ravel()[there])
            return self

        def targets(self, probabilities, mask=None):
            found = self.accuracy(probabilities).clamp(min=1e-6)
            found = found if mask is None else found.masked_fill(~mask, 0.0)
            return found / found.sum(-1, keepdim=True)


class VennAbers(WithCalibrator):
    """Inductive Venn-Abers (arXiv 1211.0025): two isotonic regressions a confidence, one with each outcome."""

    class kind(EMCalibrator):
        def _fit_isotonic(self, confidences, correct):
            grid = np.unique(np.quantile(confidences, np.linspace(0, 1, GRID), method="nearest"))
            order = np.argsort(confidences, kind="stable")
            values = []
            for c in grid:
                place = np.searchsorted(confidences[order], c)
                low, high = (
                    isotonic_regression(np.insert(correct[order], place, outcome)).x[place] for outcome in (0.0, 1.0)
                )
                values.append(high / (1 - low + high))
            return grid, isotonic_regression(np.array(values)).x
