"""Measure predictions that you already have: option probabilities, and the index of the right option."""

import numpy as np

from hf_calib import calibration_report, classify_regime, reliability_diagram
from hf_calib.data.synthetic_world import World


def main():
    questions = World().questions(2000)
    # Your own predictions here: probabilities of shape (N, K), rows summing to 1, and labels of shape (N,).
    probabilities = np.array(questions["target_probabilities"]) ** 2  # an overconfident model
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = np.array(questions["answer"])

    report = calibration_report(probabilities, labels)
    for key in ("n", "accuracy", "confidence", "ece", "ece_low", "ece_high", "ece_noise_floor", "nll", "auroc"):
        print(f"{key:16} {report[key]:.3f}")
    print(classify_regime(probabilities, labels).explanation)
    reliability_diagram(probabilities, labels, "my model").savefig("reliability.png")


if __name__ == "__main__":
    main()
