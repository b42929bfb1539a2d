"""Commands of `hf-calib`, one module each."""

# Name and description of the commands on the first page of the help, and of the others.
COMMANDS = {
    "restore": "From an aligned model and labelled questions to a calibrated checkpoint, with a report.",
    "evaluate": "Measure the calibration of a model, local or served, on option questions or short answers.",
    "measure": "Measure predictions of other tools: lm-evaluation-harness, lighteval, inspect_ai, HELM, APIs, a csv.",
    "diagnose": "Compare a model before and after alignment, and after a repair: calibration, preferences, text.",
    "calibrate": "Fit and compare post-hoc calibrators on saved predictions.",
    "threshold": "Find a confidence threshold or prediction sets with a guarantee, or check them on new predictions.",
    "answer": "Answer questions where a gate's threshold is reached, and abstain on the others.",
    "train": "Train from a recipe: CFT, RCFT, calibrated DPO, or TRL's SFT and DPO.",
    "push": "Publish a model, its predictions or the metric on the Hub, with a card.",
    "verify": "Check whether the figures on a published model's card hold.",
    "register": 'Make evaluate.load("ece_regime") work from every folder.',
    "quickstart": "Align a small model in a synthetic world and restore its calibration, in a few minutes.",
}
MORE_COMMANDS = {
    "transfer": "Find a temperature for questions without answers, from labelled questions of another kind.",
    "average": "Average models that were trained with a different part of the labels left out of each.",
}
