"""`hf-calib diagnose` on two models of the synthetic world, on predictions of them, and when called wrongly."""

import json

import numpy as np
import pytest
from samples import save_world_model

from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World
from hf_calib.evaluation.diagnose import repair_command, summary
from hf_calib.inference import predict
from hf_calib.inference.predictions import OptionPredictions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnose")
    save_world_model(folder / "reference")
    save_world_model(folder / "aligned", sharpness=8)
    world = World()
    world.questions(120).to_parquet(folder / "test.parquet")
    world.preference_pairs(60).to_parquet(folder / "pairs.parquet")
    return folder


def call(folder, *arguments):
    models = ["--reference", str(folder / "reference"), "--model", str(folder / "aligned")]
    asked = ["--dataset", str(folder / "test.parquet"), "--scoring", "text", "--n_bootstrap", "50"]
    return ["diagnose", *models, *asked, *arguments]


@pytest.fixture(scope="module")
def report(folder):
    arguments = ["--pairs", str(folder / "pairs.parquet"), "--pairs_limit", "40", "--order_limit", "30"]
    arguments += ["--prompt_template", "{question} {options}", "--output_dir", str(folder / "out")]
    assert main(call(folder, *arguments)) == 0
    return folder / "out"


def test_report_holds_everything(report):
    results = json.loads((report / "results.json").read_text())
    assert results["change/confidence_low"] > 0 and results["change/accuracy"] == 0  # sharpened, never reordered
    assert results["confidence"] > results["reference/confidence"] and results["prediction_change"] == 0
    assert results["change/accuracy_p_value"] == 1 and results["change/confidence_p_value"] < 0.05
    assert results["change/nll_low"] < results["change/nll"] < results["change/nll_high"]
    assert results["change/nll"] == pytest.approx(results["nll"] - results["reference/nll"])
    assert results["order/n"] == 30 and results["order/flip_rate"] == results["order/reference/flip_rate"]
    assert results["pairs/n"] == 40 and results["pairs/tce"] >= 0
    assert results["test"] == "reference" and results["regime"] in ("calibratable", "undetermined")
    text = (report / "report.md").read_text()
    assert text.count("\n## ") == 5  # changes, subjects, order, pairs, repair
    for figure in ("confidence", "reliability", "positions"):
        assert f"({figure}.png)" in text and (report / f"{figure}.svg").stat().st_size > 1000
    assert summary(results) in text
    assert f"hf-calib train --objective {results['recommended_method']} --model_name_or_path" in text
    assert "--prompt_template '{question} {options}'" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (4, 5, 6, 7, 13) for line in rows)


def test_a_second_call_scores_nothing_again(report, folder, monkeypatch):
    before = json.loads((report / "results.json").read_text())
    monkeypatch.setattr(predict.OptionScorer, "__call__", lambda *_: pytest.fail("scored again"))
    arguments = ["--pairs", str(folder / "pairs.parquet"), "--pairs_limit", "40", "--order_limit", "30"]
    arguments += ["--prompt_template", "{question} {options}", "--output_dir", str(report)]
    assert main(call(folder, *arguments)) == 0
    assert json.loads((report / "results.json").read_text()) == before


def test_pairs_are_read_as_the_loss_of_the_training_says(report, folder, tmp_path):
    """From training.json or from the flags; IPO's margin is a mean over the tokens (here two) of a completion."""
    scores = [OptionPredictions.load(report / name / "pairs.npz").option_logits for name in ("reference", "aligned")]
    margins = (scores[1] - scores[0]) @ [1, -1]
    sides = {"sigmoid": 1 / (1 + np.exp(-0.1 * margins)), "ipo": np.clip(0.5 + 0.3 * margins / 2, 0, 1)}
    expected = {name: np.maximum(p, 1 - p).mean() for name, p in sides.items()}
    first = json.loads((report / "results.json").read_text())
    assert first["pairs/confidence"] == pytest.approx(expected["sigmoid"], abs=1e-5)
    arguments = ["--pairs", str(folder / "pairs.parquet"), "--pairs_limit", "40", "--limit", "20"]
    given = ["--beta", "0.3", "--loss_type", "ipo"]
    record = folder / "aligned" / "training.json"
    for place, flags in (("flags", given), ("record", [])):
        if not flags:
            record.write_text(json.dumps({"settings": {"beta": 0.3, "loss_type": "sft, ipo"}}))
        assert main(call(folder, *arguments, *flags, "--output_dir", str(tmp_path / place))) == 0
        results = json.loads((tmp_path / place / "results.json").read_text())
        assert results["pairs/confidence"] == pytest.approx(expected["ipo"], abs=1e-5)
        assert results["pairs/beta"] == 0.3 and "ipo" in results["pairs/loss_type"]
    record.unlink()


def test_two_processes_share_the_work(launch, report, folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("the colour of bavo is\nthe food of lila is\nthe song of\n")
    arguments = ["--pairs", str(folder / "pairs.parquet"), "--pairs_limit", "40", "--order_limit", "30"]
    arguments += ["--repaired", str(folder / "aligned"), "--prompts", str(tmp_path / "prompts.txt")]
    arguments += ["--max_new_tokens", "5"]
    arguments += ["--prompt_template", "{question} {options}", "--output_dir", str(tmp_path)]
    done = launch("ddp", "hf_calib.cli", *call(folder, *arguments), module=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("recommended:") == 1
    ours, theirs = (json.loads((place / "results.json").read_text()) for place in (tmp_path, report))
    numbers = {key: value for key, value in theirs.items() if isinstance(value, float)}
    # batches of another make-up round otherwise
    assert {key: ours[key] for key in numbers} == pytest.approx(numbers, abs=2e-3)
    assert ours["pairs/n"] == 40
    assert ours["alignment/n_prompts"] == 3 and ours["alignment/repaired/top1_agreement"] == 1
    assert ours["alignment/reference/kl_per_token"] > 0


def test_predictions_are_enough(report, folder, tmp_path, capsys):
    base = OptionPredictions.load(report / "reference" / "predictions.npz")
    base.select(base.ids[::-1]).save(tmp_path / "reversed.npz")
    arguments = [
        "diagnose",
        "--reference_predictions",
        str(tmp_path / "reversed.npz"),
        "--predictions",
        str(report / "aligned"),
    ]
    assert main([*arguments, "--n_bootstrap", "50", "--output_dir", str(tmp_path / "out")]) == 0
    ours, theirs = (json.loads((place / "results.json").read_text()) for place in (tmp_path / "out", report))
    assert {key: theirs[key] for key in ours} == ours
    assert not (tmp_path / "out" / "positions.png").exists()
    out = capsys.readouterr().out
    assert "recommended: hf-calib train" in out and "overconfidence" in out


def test_texts_have_no_order(folder, tmp_path):
    """Where the prompt does not show the options, the experiment would measure nothing and is not made."""
    assert main(call(folder, "--limit", "20", "--output_dir", str(tmp_path))) == 0
    assert not list(tmp_path.rglob("order-*.npz"))
    assert len(OptionPredictions.load(tmp_path / "aligned" / "predictions.npz")) == 20


@pytest.fixture(scope="module")
def alignment(folder):
    """Call of the report on the alignment after a repair, and its folder."""
    save_world_model(folder / "repaired", sharpness=4)
    (folder / "prompts.txt").write_text("the colour of bavo is\nthe food of lila is\nthe song of\n")
    (folder / "texts.txt").write_text("the colour of bavo is red\n\nthe home of lila is forest\n")
    arguments = ["--repaired", str(folder / "repaired"), "--pairs", str(folder / "pairs.parquet"), "--limit", "30"]
    arguments += ["--prompts", str(folder / "prompts.txt"), "--texts", str(folder / "texts.txt"), "--texts_limit", "1"]
    arguments += ["--max_new_tokens", "5", "--pairs_limit", "30", "--output_dir", str(folder / "alignment")]
    assert main(call(folder, *arguments)) == 0
    return arguments, folder / "alignment"


def test_alignment_after_a_repair(folder, alignment):
    from hf_calib.data.preference_pairs import load_pairs
    from hf_calib.evaluation.alignment import alignment_report
    from hf_calib.evaluation.alignment_report import AlignmentReport
    from hf_calib.inference.model_loading import load_model

    _, out = alignment
    results, text = json.loads((out / "results.json").read_text()), (out / "report.md").read_text()
    assert results["repaired/n"] == 30 and results["reference/confidence"] < results["repaired/confidence"]
    assert results["repaired/confidence"] < results["confidence"]
    report = AlignmentReport.load(out)
    assert {f"alignment/{key}": value for key, value in json.loads((out / "alignment.json").read_text()).items()} == {
        key: value for key, value in results.items() if key.startswith("alignment/")
    }
    (reference, tokenizer), (aligned, _), (repaired, _) = (
        load_model(str(folder / name)) for name in ("reference", "aligned", "repaired")
    )
    given = {"pairs": load_pairs(folder / "pairs.parquet", limit=30), "prompts": folder / "prompts.txt"}
    given["texts"] = ["the colour of bavo is red", "the home of lila is forest"][-1:]
    ours = alignment_report(aligned, tokenizer, repaired, reference, **given, max_new_tokens=5, n_bootstrap=50)
    assert (report.n_pairs, report.n_prompts, report.n_texts) == (30, 3, 1)
    for measure in ("pair_accuracy", "margin", "kl_per_token", "length", "end_rate"):
        assert report.models["repaired"].get(measure) == pytest.approx(ours.models["repaired"].get(measure))
    assert report.section() in text and report.lines()[0] in text and "| repaired | 30 |" in text
    for name in ("reference", "aligned", "repaired"):
        assert (out / name / "alignment.npz").is_file() and (out / name / "pairs.npz").is_file()


def test_a_second_call_samples_nothing_again(folder, alignment, monkeypatch, capsys):
    arguments, out = alignment
    before = json.loads((out / "results.json").read_text())
    monkeypatch.setattr(
        "hf_calib.evaluation.alignment.continue_prompts", lambda *_, **__: pytest.fail("sampled again")
    )
    assert main(call(folder, *arguments)) == 0
    assert json.loads((out / "results.json").read_text()) == before
    printed = capsys.readouterr().out
    assert "Alignment of the repaired model:" in printed and "pair_accuracy" in printed and "end_rate" in printed


def test_other_vocabularies_have_no_alignment_report(folder, tmp_path, tiny_tokenizers, tiny_llama, capsys):
    tiny_llama(tiny_tokenizers["gpt2"]).save_pretrained(tmp_path / "other")
    tiny_tokenizers["gpt2"].save_pretrained(tmp_path / "other")
    assert main(call(folder, "--repaired", str(tmp_path / "other"), "--output_dir", str(tmp_path / "out"))) == 2
    assert "other has another vocabulary than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--reference_predictions", "x", "--predictions", "y", "--repaired", "z"], "--repaired, --prompts and --texts need"),
        (["--reference", "{folder}/reference", "--model", "{folder}/reference", "--dataset", "{folder}/test.parquet", "--scoring", "text", "--prompts", "{folder}/test.parquet"], "no column `prompt` or `messages`"),
        (["--reference", "x", "--model", "y", "--dataset", "z", "--max_new_tokens", "0"], "max_new_tokens must be at least 1"),
        (["--reference", "x", "--model", "y"], "--dataset is missing"),
        (["--model", "y", "--dataset", "{folder}/test.parquet"], "--reference and --model"),
        (["--reference_predictions", "x"], "--reference_predictions and --predictions"),
        (["--reference_predictions", "x", "--predictions", "y", "--reference", "z"], "--reference_predictions and --predictions"),
        (["--reference_predictions", "{folder}/no.npz", "--predictions", "{folder}/no.npz"], "no.npz"),
        (["--reference_predictions", "x", "--predictions", "y", "--pairs", "z"], "--pairs needs"),
        (["--reference", "{folder}", "--model", "{folder}/reference", "--dataset", "{folder}/test.parquet", "--scoring", "text"], "config.json"),
        (["--reference", "{folder}/reference", "--model", "{folder}/reference", "--dataset", "{folder}/test.parquet", "--beta", "0"], "beta"),
        (["--reference", "{folder}/reference", "--model", "{folder}/reference", "--dataset", "{folder}/test.parquet", "--pairs", "{folder}/test.parquet"], "chosen"),
        (["--reference", "{folder}/reference", "--model", "{folder}/reference", "--dataset", "{folder}/test.parquet", "--pairs", "{folder}/pairs.parquet", "--loss_type", "hinge"], "loss_type=hinge"),
    ],
)  # fmt: skip
def test_wrong_calls_are_named_and_leave_with_two(folder, tmp_path, capsys, arguments, named):
    arguments = [part.format(folder=folder) for part in arguments]
    assert main(["diagnose", *arguments, "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error


def test_help_teaches_by_example(capsys):
    assert main(["diagnose", "--help"]) == 0
    out = capsys.readouterr().out
    assert "examples:" in out and "hf-calib diagnose --reference_predictions before" in out and "--order_limit" in out


def test_other_questions_are_refused(report, tmp_path, capsys):
    base = OptionPredictions.load(report / "reference" / "predictions.npz")
    base.labels = (base.labels + 1) % 4
    base.save(tmp_path / "other.npz")
    paths = ["--reference_predictions", str(tmp_path / "other.npz"), "--predictions", str(report / "aligned")]
    assert main(["diagnose", *paths, "--output_dir", str(tmp_path)]) == 2
    assert f"the answer of question {str(base.ids[0])!r}" in capsys.readouterr().err.replace("np.str_(", "").replace(
        ")", ""
    )


def test_the_repair_asks_as_the_evaluation_did():
    asked = {
        "scoring": "letter",
        "prompt_template": "Q: {question}\n{options}",
        "use_chat_template": False,
        "system_prompt": None,
    }
    command = repair_command(
        {"recommended_method": "rcft"}, "org/my model", {"prompt_format": asked, "option_normalization": "mean"}
    )
    assert command.startswith("hf-calib train --objective rcft --model_name_or_path 'org/my model' --dataset_name")
    assert "--use_chat_template false" in command and "--option_normalization mean" in command
    assert "system_prompt" not in command and command.endswith("--output_dir 'my model-rcft'")


def test_probabilities_that_a_calibrator_ruled_out(report):
    """-inf of a calibrator is no missing option."""
    from hf_calib.evaluation.diagnose import diagnose

    base, aligned = (OptionPredictions.load(report / name / "predictions.npz") for name in ("reference", "aligned"))
    aligned.option_logits = np.where(np.arange(4) == aligned.option_logits.argmax(1)[:, None], 0, -np.inf)
    results = diagnose(base, aligned, n_bootstrap=20)
    assert results["normalized_entropy"] == 0 and results["saturation"] == 1
