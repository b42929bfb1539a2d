"""`hf-calib measure`, and the commands that take files of other tools."""

import json

import numpy as np
import pandas as pd
import pytest
from samples import make, slow_ece

from hf_calib import comparison_report, load_predictions
from hf_calib.cli.main import main
from hf_calib.cli.reading import parse_roles
from hf_calib.evaluation.evaluate import evaluate_confidences, evaluate_probabilities
from hf_calib.inference.predictions import OptionPredictions


FAST = ["--n_bootstrap", "30"]


@pytest.fixture(scope="module")
def data():
    probabilities, labels, _ = make(n=400, seed=3)
    return probabilities.astype(np.float32), labels


@pytest.fixture
def files(tmp_path, data):
    """The same predictions as a csv of named columns and as samples of lm-evaluation-harness, of two tasks."""
    probabilities, labels = data
    frame = pd.DataFrame({f"p_{k}": probabilities[:, k] for k in range(4)})
    frame.assign(id=[f"q{row}" for row in range(400)], label=labels, subject=["a", "b"] * 200).to_csv(
        tmp_path / "table.csv", index=False
    )
    for number, rows in enumerate((range(200), range(200, 400))):
        lines = [_sample(row, probabilities[row], labels[row]) for row in rows]
        (tmp_path / f"samples_task{number}_2026-01-31T00-00-00.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def _sample(row, probabilities, label):
    arguments = {f"gen_args_{k}": {"arg_0": "?", "arg_1": f" {letter}"} for k, letter in enumerate("ABCD")}
    responses = [[str(np.log(float(p))), "False"] for p in probabilities]
    return {"doc_id": row, "target": str(label), "arguments": arguments, "filtered_resps": responses, "filter": "none"}


def measure(*arguments):
    return main(["measure", *FAST, *map(str, arguments)])


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_everything_that_evaluate_reports(files, data, tmp_path, capsys):
    probabilities, labels = data
    out = tmp_path / "out"
    assert measure(files / "table.csv", "--output_dir", out) == 0
    results = results_of(out)
    expected = evaluate_probabilities(probabilities, labels, groups=["a", "b"] * 200, n_bootstrap=30)
    for key, value in expected.items():
        assert results[key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), key
    correct = probabilities.argmax(axis=1) == labels
    assert results["ece"] == pytest.approx(slow_ece(probabilities.max(axis=1), correct), abs=1e-6)
    assert results["predictions_format"] == "columns" and results["files"] == ["table.csv"]
    assert "option_mass" not in results
    assert {path.name for path in out.iterdir()} >= {"predictions.npz", "reliability.png", "groups.png"}
    saved = OptionPredictions.load(out / "predictions.npz")
    np.testing.assert_allclose(saved.probabilities, probabilities, rtol=1e-6)
    shown = capsys.readouterr().out
    assert "2 groups" in shown and results["explanation"] in shown.replace("\n", " ")


def test_several_files_are_tasks_measured_together(files, data, tmp_path, capsys):
    probabilities, labels = data
    out = tmp_path / "out"
    paths = sorted(files.glob("samples_*"))
    assert measure("--output_dir", out, *paths) == 0  # arguments may come first
    results = results_of(out)
    expected = evaluate_probabilities(probabilities, labels, groups=np.repeat(["task0", "task1"], 200), n_bootstrap=30)
    assert results["ece"] == pytest.approx(expected["ece"], abs=1e-6)
    assert results["group/task1/ece"] == pytest.approx(expected["group/task1/ece"], abs=1e-6)
    assert results["dataset"] == "task0, task1" and results["option_mass"] == pytest.approx(1, abs=1e-5)
    assert "option mass: 1.000" in capsys.readouterr().out


def test_a_folder_of_one_format(files, tmp_path, capsys):
    folder, named, whole = tmp_path / "run", tmp_path / "named", tmp_path / "whole"
    folder.mkdir()
    for path in files.glob("samples_*"):
        path.rename(folder / path.name)
    (folder / "results_2026-01-31T00-00-00.json").write_text('{"results": {"task0": {"acc,none": 0.5}}, "config": {}}')
    (folder / "notes.txt").write_text("not a table")
    assert measure(*sorted(folder.glob("samples_*")), "--output_dir", named) == 0
    capsys.readouterr()
    assert measure(folder, "--output_dir", whole) == 0
    note = "files of the folder that are not read: results_2026-01-31T00-00-00.json"
    assert f"note: {note}" in capsys.readouterr().out
    assert results_of(whole) == {**results_of(named), "notes": [note]}
    call = ["calibrate", "--predictions", str(folder), "--method", "temperature", "--n_bootstrap", "20"]
    assert main([*call, "--output_dir", str(tmp_path / "calibrated")]) == 0

    # a second format
    (tmp_path / "table.csv").rename(folder / "table.csv")
    capsys.readouterr()
    assert measure(folder) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "several formats (lm_eval: samples_task0_2026-01-31T00-00-00.jsonl, samples_task1" in error
    assert "columns: table.csv). Name files, or choose with --format" in error
    assert measure(folder, "--format", "lm_eval") == 0 and measure(folder, "--format", "columns") == 0

    # the same task twice
    again = folder / "samples_task0_2026-02-01T00-00-00.jsonl"
    again.write_bytes((folder / "samples_task0_2026-01-31T00-00-00.jsonl").read_bytes())
    capsys.readouterr()
    assert measure(folder, "--format", "lm_eval") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"several files are of the same task (samples_task0_2026-01-31T00-00-00.jsonl, {again.name})" in error


def test_a_folder_without_predictions(files, tmp_path, capsys):
    empty = tmp_path / "runs"
    (empty / "model").mkdir(parents=True)
    (empty / "config.json").write_text('{"seed": 1}')
    assert measure(empty) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "holds no predictions of a known format; its files: config.json; its folders: model" in error


def test_a_folder_of_two_models(tmp_path, capsys):
    choice = {
        "message": {"content": "A"},
        "logprobs": {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": []}]},
    }
    choice["logprobs"]["content"][0]["top_logprobs"] = [
        {"token": t, "logprob": p} for t, p in (("A", -0.1), ("B", -2.4))
    ]
    for model in ("one", "two"):
        body = {"object": "chat.completion", "model": model, "choices": [choice]}
        line = {"custom_id": "q", "response": {"status_code": 200, "body": body}, "error": None}
        (tmp_path / f"{model}.jsonl").write_text(json.dumps(line))
    (tmp_path / "gold.csv").write_text("id,label\nq,0\n")
    call = [tmp_path, "--labels", tmp_path / "gold.csv", "--num_options", 2]
    assert measure(*call) == 2
    assert "holds predictions of one (one.jsonl), two (two.jsonl); name the folder or files of one" in " ".join(
        capsys.readouterr().err.split()
    )
    (tmp_path / "two.jsonl").unlink()
    assert measure(*call) == 0


def test_the_folders_inside_a_folder(files, tmp_path, capsys):
    """As lm-evaluation-harness writes them: OUT/MODEL/samples_TASK_DATE.jsonl beside results_DATE.json."""
    out, named, whole = tmp_path / "OUT", tmp_path / "named", tmp_path / "whole"
    one = out / "org__one"
    one.mkdir(parents=True)
    (one / "results_2026-01-31T00-00-00.json").write_text('{"results": {}, "config": {}}')
    for path in files.glob("samples_*"):
        path.rename(one / path.name)
    assert measure(*sorted(one.glob("samples_*")), "--output_dir", named) == 0
    assert measure(out, "--output_dir", whole) == 0
    results, expected = results_of(whole), results_of(named)
    assert {"model": "org/one", "n": 400}.items() <= results.items() and results["ece"] == expected["ece"]
    assert results["files"] == [f"org__one/{name}" for name in expected["files"]]
    assert results["notes"] == ["files of the folder that are not read: org__one/results_2026-01-31T00-00-00.json"]

    two = out / "org__two"
    two.mkdir()
    for path in one.iterdir():
        (two / path.name).write_bytes(path.read_bytes())
    capsys.readouterr()
    assert measure(out) == 2
    error = " ".join(capsys.readouterr().err.split())
    sample = "samples_task0_2026-01-31T00-00-00.jsonl"
    assert f"holds predictions of org/one (org__one/{sample}), org/two (org__two/{sample})" in error
    assert "name the folder or files of one" in error
    assert measure(two) == 0

    # files that do not name their model
    for folder in (one, two):
        (folder / "results_2026-01-31T00-00-00.json").unlink()
    (two / "samples_task0_2026-01-31T00-00-00.jsonl").unlink()
    (one / "samples_task1_2026-01-31T00-00-00.jsonl").unlink()
    capsys.readouterr()
    assert measure(out) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "are in several folders (org__one, org__two), and whether they are of one model is not known" in error


def test_two_runs_of_a_task_in_folders_of_lighteval(tmp_path, capsys):
    row = {
        "doc": {"choices": ["a", "b"], "gold_index": [0]},
        "model_response": {"logprobs": [-0.5, -1.5]},
        "metric": {"acc": 1},
    }
    model = tmp_path / "details" / "org" / "one"
    for date in ("2026-01-31T00-00-00", "2026-02-01T00-00-00"):
        (model / date).mkdir(parents=True)
        pd.DataFrame([row]).to_parquet(model / date / f"details_arc|0_{date}.parquet")
    assert measure(tmp_path) == 2
    error = " ".join(capsys.readouterr().err.split())
    first, second = (
        f"details/org/one/{date}/details_arc|0_{date}.parquet"
        for date in ("2026-01-31T00-00-00", "2026-02-01T00-00-00")
    )
    assert (
        f"several files are of the same task ({first}, {second}); name those to read, or the folder of one run"
        in error
    )
    assert measure(model / "2026-02-01T00-00-00", "--output_dir", tmp_path / "out") == 0
    assert results_of(tmp_path / "out")["model"] == "org/one"


def test_other_commands_read_with_the_same_arguments(files, data, tmp_path, capsys):
    """calibrate and diagnose name columns; push takes the folder of a tool."""
    probabilities, labels = data
    flat = (probabilities + 0.5) / 3  # the same answers, less confident
    for name, values in (("before", flat), ("after", probabilities)):
        frame = pd.DataFrame({f"option_{letter}_score": values[:, k] for k, letter in enumerate("ABCD")})
        frame.assign(key=range(400), truth=labels + 1).to_csv(tmp_path / f"{name}.csv", index=False)
    scores = ",".join(f"option_{letter}_score" for letter in "ABCD")
    reading = ["--columns", f"probabilities={scores},label=truth", "--answers_from", "1"]
    call = [
        "calibrate",
        "--predictions",
        str(tmp_path / "after.csv"),
        "--method",
        "temperature",
        "--n_bootstrap",
        "20",
    ]
    assert main([*call, *reading, "--output_dir", str(tmp_path / "calibrated")]) == 0
    stage = results_of(tmp_path / "calibrated")[0]
    assert stage["accuracy"] == pytest.approx((probabilities.argmax(1) == labels).mean())
    call = ["diagnose", "--reference_predictions", str(tmp_path / "before.csv"), "--n_bootstrap", "20"]
    call += ["--predictions", str(tmp_path / "after.csv"), "--output_dir", str(tmp_path / "diagnosis")]
    assert main([*call, *reading]) == 0
    results = results_of(tmp_path / "diagnosis")
    for key, values in (("confidence", probabilities), ("reference/confidence", flat)):
        assert results[key] == pytest.approx(float(values.max(axis=1).mean()), abs=1e-5)
    assert main([*call, *reading[:2]]) == 2  # labels from 1 to 4

    folder = tmp_path / "OUT" / "org__one"
    folder.mkdir(parents=True)
    for path in files.glob("samples_*"):
        path.rename(folder / path.name)
    call = ["push", "--what", "predictions", "--dry_run", "true", "--output_dir", str(tmp_path / "published")]
    assert main([*call, "--evaluation", str(tmp_path / "OUT")]) == 0
    assert len(pd.read_parquet(tmp_path / "published" / "data" / "test.parquet")) == 400


def test_confidences_alone(data, tmp_path, capsys):
    probabilities, labels = data
    correct = (probabilities.argmax(axis=1) == labels).astype(int)
    pd.DataFrame({"confidence": probabilities.max(axis=1), "correct": correct}).to_csv(tmp_path / "c.csv", index=False)
    out = tmp_path / "out"
    assert measure(tmp_path / "c.csv", "--num_options", 4, "--output_dir", out) == 0
    expected = evaluate_confidences(probabilities.max(axis=1), correct, 4, n_bootstrap=30)
    results = results_of(out)
    assert results["ece"] == pytest.approx(expected["ece"], abs=1e-6) and results["regime"] == expected["regime"]
    assert "nll" not in results and (out / "reliability.png").is_file()
    assert "not computed, because the file has confidences alone: cw-ECE, NLL" in capsys.readouterr().out
    saved = load_predictions(out)
    np.testing.assert_array_equal(saved.correct, correct)
    assert measure(out / "predictions.npz") == 0
    assert main(["calibrate", "--predictions", str(tmp_path / "c.csv")]) == 2
    assert "holds confidences alone; this command needs probabilities" in capsys.readouterr().err


def test_reference_decides_the_regime(files, data, tmp_path):
    probabilities, labels = data
    softer = probabilities**0.5 / (probabilities**0.5).sum(axis=1, keepdims=True)
    frame = pd.DataFrame({f"p_{k}": softer[:, k] for k in range(4)})
    frame.assign(id=[f"q{row}" for row in range(400)], label=labels)[::-1].to_parquet(tmp_path / "before.parquet")
    out = tmp_path / "out"
    arguments = ["--reference_predictions", tmp_path / "before.parquet", "--output_dir", out]
    assert measure(files / "table.csv", *arguments) == 0
    expected = evaluate_probabilities(probabilities, labels, reference_probabilities=softer, n_bootstrap=30)
    assert results_of(out)["critical_accuracy"] == pytest.approx(expected["critical_accuracy"], abs=1e-4)


def test_two_models_are_compared_by_the_ids_of_the_questions(files, data, tmp_path, capsys):
    probabilities, labels = data
    softer = probabilities**0.5 / (probabilities**0.5).sum(axis=1, keepdims=True)
    frame = pd.DataFrame({f"p_{k}": softer[:, k] for k in range(4)})
    frame = frame.assign(id=[f"q{row}" for row in range(400)], label=labels)
    frame[::-1].to_csv(tmp_path / "other.csv", index=False)
    out = tmp_path / "out"
    assert measure(files / "table.csv", "--other_predictions", tmp_path / "other.csv", "--output_dir", out) == 0
    results = results_of(out)
    expected = comparison_report((softer, labels), (probabilities, labels), groups=["a", "b"] * 200, n_bootstrap=30)
    for key, value in expected.items():
        assert results[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    shown = capsys.readouterr().out
    assert "difference [95%]" in shown and f"{results['difference/nll']:+.4f}" in shown
    assert "cross-fitted" in shown and "kernel test" in shown and (out / "corp.png").is_file()
    assert results["recalibration_gain"] > 0

    # one of them as confidences, then with one question less
    correct = softer.argmax(axis=1) == labels
    plain = pd.DataFrame({"id": frame["id"], "confidence": softer.max(axis=1), "correct": correct.astype(int)})
    plain[::-1].to_csv(tmp_path / "plain.csv", index=False)
    assert measure(files / "table.csv", "--other_predictions", tmp_path / "plain.csv", "--output_dir", out) == 0
    assert results_of(out)["difference/ece"] == pytest.approx(results["difference/ece"], abs=1e-5)
    assert "difference/nll" not in results_of(out)
    plain[1:].to_csv(tmp_path / "plain.csv", index=False)
    assert measure(files / "table.csv", "--other_predictions", tmp_path / "plain.csv") != 0
    assert "1 of 400 questions are not among the 399 predicted, the first of them 'q0'" in capsys.readouterr().err


def test_calibrate_and_diagnose_take_the_files(files, tmp_path, capsys):
    samples = files / "samples_task0_2026-01-31T00-00-00.jsonl"
    options = ["--n_bootstrap", "30", "--output_dir"]
    call = ["calibrate", "--predictions", str(samples), "--method", "temperature", *options, str(tmp_path / "c")]
    assert main(call) == 0
    stages = {stage["method"]: stage for stage in results_of(tmp_path / "c")}
    assert stages["temperature"]["ece"] < stages["as is"]["ece"]
    call = ["diagnose", "--reference_predictions", str(files / "table.csv"), "--predictions", str(files / "table.csv")]
    assert main([*call, *options, str(tmp_path / "d")]) == 0
    assert results_of(tmp_path / "d")["change/accuracy"] == 0
    batch = tmp_path / "batch.jsonl"
    batch.write_text('{"custom_id": "1", "response": {"body": {"object": "chat.completion", "choices": []}}}\n')
    assert main(["calibrate", "--predictions", str(batch)]) == 2
    assert "add --num_options 4 (letters A to D)" in capsys.readouterr().err
    call = ["push", "--what", "predictions", "--dry_run", "true", "--output_dir", str(tmp_path / "p"), "--evaluation"]
    assert main([*call, str(batch)]) == 2
    assert "convert the file with `hf-calib measure FILE ... --output_dir DIR`" in capsys.readouterr().err


def test_push_writes_a_card_that_names_the_files(files, tmp_path):
    samples = files / "samples_task0_2026-01-31T00-00-00.jsonl"
    folder = tmp_path / "published"
    call = ["push", "--what", "predictions", "--dry_run", "true", "--output_dir", str(folder), "--evaluation"]
    assert main([*call, str(samples)]) == 0
    assert "read from files of the format lm\\_eval" in (folder / "README.md").read_text().replace(
        "lm_eval", "lm\\_eval"
    )
    out = tmp_path / "out"
    assert measure(samples, "--output_dir", out) == 0
    assert main(["push", "--evaluation", str(out), "--dry_run", "true"]) == 0
    card = (out / "README.md").read_text().replace("\\", "")
    assert "read from samples_task0" in card and "hf-calib evaluate" not in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl"], "nothing.jsonl: no such file"),
        ([], "the following arguments are required: FILE"),
        (["{table}", "--format", "helm"], "this is no scenario_state.json of HELM"),
        (["{table}", "--format", "lmeval"], "the format 'lmeval' is not known: use one of lm_eval"),
        (["{table}", "--filter", "none"], "--filter has no meaning for the format columns, only for lm_eval"),
        (["{table}", "--columns", "gold"], "must be ROLE=COLUMN"),
        (["{table}", "--num_options", "1"], "num_options must be at least 2"),
        (["{table}", "--lables", "x"], "unknown argument --lables; did you mean --labels"),
    ],
)
def test_wrong_calls(files, capsys, arguments, message):
    assert measure(*(argument.format(table=files / "table.csv") for argument in arguments)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_roles_of_columns():
    assert parse_roles("probabilities=p_yes,p_no,label=gold") == {"probabilities": "p_yes,p_no", "label": "gold"}
    assert parse_roles("") == {}
    with pytest.raises(ValueError, match="names the role label twice"):
        parse_roles("label=a,label=b")
