"""How many labels post-hoc calibrators want: fitted on draws of labelled predictions, measured on others.

    hf-calib evaluate --model M --dataset train.parquet --output_dir fit
    hf-calib evaluate --model M --dataset test.parquet --output_dir before
    python benchmarks/posthoc/posthoc.py --predictions fit --apply_to before

"chosen" is what `hf-calib calibrate` would take, chosen inside each draw. Prints one line of JSON last.
"""

import argparse
import json
import warnings

import numpy as np
from scipy.special import softmax

from hf_calib.evaluation.compare import stage_name
from hf_calib.hub.saved_predictions import load_predictions
from hf_calib.measures.calibration_error import expected_calibration_error, negative_log_likelihood
from hf_calib.posthoc import AS_IS, METHODS, choose_method, cross_validate, fit_calibrator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--predictions", required=True, help="predictions to fit on: a folder of an evaluation, or .npz"
    )
    parser.add_argument("--apply_to", required=True, help="predictions to measure on")
    parser.add_argument("--labels", type=int, nargs="+", default=[20, 50, 100, 200], help="numbers of labels")
    parser.add_argument("--seeds", type=int, default=20, help="draws of each")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # few labels are the point here
    fit, test = load_predictions(args.predictions), load_predictions(args.apply_to)
    if max(args.labels) > len(fit):
        parser.error(f"--labels {max(args.labels)} is more than the {len(fit)} questions of --predictions.")
    ragged = not all(np.isfinite(p.option_logits).all() for p in (fit, test))
    grouped = fit.subjects is not None and test.subjects is not None
    methods = [
        name
        for name, kind in METHODS.items()
        if kind.supervised and (grouped or not kind.grouped) and not (ragged and name == "matrix")
    ]

    def measure(probabilities: np.ndarray) -> tuple[float, float]:
        return negative_log_likelihood(probabilities, test.labels), expected_calibration_error(
            probabilities, test.labels
        )

    before = measure(softmax(test.option_logits.astype(np.float64), axis=-1))
    figures = {"as_is_nll": before[0], "as_is_ece": before[1]}
    print(f"{len(test):,} questions measured; as is: NLL {before[0]:.3f}, conf-ECE {before[1]:.3f}\n")
    print("| labels | method | NLL, mean | worst draw | conf-ECE, mean | worst draw |\n|---:|---|---:|---:|---:|---:|")
    for n in args.labels:
        results = {name: [] for name in [*methods, "chosen"]}
        for seed in range(args.seeds):
            rows = np.random.default_rng(seed).choice(len(fit), n, replace=False)
            logits, labels = fit.option_logits[rows], fit.labels[rows]
            subjects = fit.subjects[rows] if grouped else None
            for name in methods:
                fitted = fit_calibrator(name, logits, labels, groups=subjects)
                results[name].append(measure(fitted.transform(test.option_logits, groups=test.subjects)))
            outcomes = cross_validate(methods, logits, labels, seed=seed, groups=subjects)
            chosen, _ = choose_method(outcomes, labels, list(METHODS))
            results["chosen"].append(before if chosen == AS_IS else results[chosen][-1])
        for name, draws in results.items():
            (nll, ece), (worst_nll, worst_ece) = np.mean(draws, axis=0), np.max(draws, axis=0)
            title = "**chosen**" if name == "chosen" else stage_name(name)
            print(f"| {n} | {title} | {nll:.3f} | {worst_nll:.3f} | {ece:.3f} | {worst_ece:.3f} |", flush=True)
            figures |= {f"{name}_{n}_nll": nll, f"{name}_{n}_worst_nll": worst_nll, f"{name}_{n}_ece": ece}
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
