"""The card: what it says, on what it stands, and that nothing from outside becomes markup in it."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from loopback import assert_card_states, read
from markdown_it import MarkdownIt

from hf_calib.cli.main import main
from hf_calib.evaluation.alignment_report import AlignmentReport
from hf_calib.evaluation.tables import write_json
from hf_calib.hub.card import CalibrationCard
from hf_calib.hub.markup import BEGIN, END, escape, fenced
from hf_calib.hub.publish import write_card
from hf_calib.measures.bootstrap import Estimate
from hf_calib.regime.report import CALIBRATABLE, NON_CALIBRATABLE, TARGET_CONTRADICTED, UNDETERMINED


RESULTS = {
    "model": "org/model", "repo_id": "org/model", "dataset": "allenai/ai2_arc", "dataset_config": "ARC-Easy", "split": "test",
    "scoring": "text", "option_normalization": "sum", "prompt_template": "{question}", "use_chat_template": False,
    "limit": 1000, "seed": 3, "n": 1000, "accuracy": 0.6123456789012345, "confidence": 0.7, "ece": 0.1, "ece_low": 0.07,
    "ece_high": 0.13, "ece_noise_floor": 0.03, "ece_p_value": 0.001, "cw_ece": 0.05, "tce": None, "nll": 1.1, "brier": 0.5,
    "auroc": 0.7, "alpha": 0.05, "regime": "undetermined", "explanation": "Nobody can tell.",
}  # fmt: skip
NASTY = "a|b`c`<script>alert(1)</script>\n# d [x](javascript:y) *e* --> " + END + " {{ 7*7 }} $$ ''' \"q\": [\u202e"

TRL = """\
---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
licence: license
tags:
- trl
- sft
---

# Model Card for tuned

Made by hand: keep me.

## Citations

Cite TRL.
"""


def html(markdown: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(markdown)


def test_on_trls_card_it_goes_before_the_references_and_the_front_matter_is_merged():
    results = {**RESULTS, "inherited": {"license": "apache-2.0", "language": ["en"], "base_model": "other/base"}}
    card = CalibrationCard(results).render(TRL)
    assert_card_states(card, results)
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0" and data["language"] == ["en"] and "licence" not in data
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the card said goes first
    assert data["tags"] == ["trl", "sft", "calibration", "hf_calib"]
    (dataset,) = [entry["dataset"] for entry in data["model-index"][0]["results"]]
    assert (dataset["type"], dataset["config"], dataset["split"]) == ("allenai/ai2_arc", "ARC-Easy", "test")
    order = [card.text.index(part) for part in ("keep me", BEGIN, "## Calibration", END, "Cite TRL")]
    assert order == sorted(order)
    again = CalibrationCard(results).render(card.content)
    assert again.content == card.content
    changed = CalibrationCard({**results, "accuracy": 0.5}).render(card.content)
    assert changed.content.count(BEGIN) == 1 and "0.500" in changed.text and "0.612" not in changed.text
    assert_card_states(changed, {**results, "accuracy": 0.5})


def test_other_evaluations_stay():
    theirs = "model-index:\n- name: m\n  results:\n  - task: {type: text-generation}\n    dataset: {type: mmlu, name: MMLU}\n"
    card = CalibrationCard(RESULTS).render(f"---\n{theirs}    metrics: [{{type: acc, value: 0.4}}]\n---\n\n# m\n")
    again = CalibrationCard(RESULTS).render(card.content)
    kept = [result for result in again.data.eval_results if result.dataset_type == "mmlu"]
    assert len(kept) == 1 and kept[0].metric_value == 0.4 and again.content == card.content


def test_every_verdict_is_explained():
    for regime in (CALIBRATABLE, NON_CALIBRATABLE, TARGET_CONTRADICTED, UNDETERMINED):
        text = CalibrationCard({**RESULTS, "regime": regime}).render().text
        assert f"**{regime}.**" in text and text.partition(f"**{regime}.**")[2].splitlines()[2].startswith("Th")


def test_no_section_is_empty_and_none_is_about_what_there_is_not():
    training = {
        "settings": {"objective": "rcft"},
        "budget": ["2 labels."],
        "objective": "RCFT.",
        "recipe": "a: 1\n",
        "command": "x",
    }
    before = {**RESULTS, "ece": 0.2, "regime": "calibratable"}
    full = {
        **RESULTS,
        "before": before,
        "training": training,
        "with_calibrator": {**RESULTS, "calibrator": "temperature scaling"},
    }
    for results in (RESULTS, full, {"training": training, "model": "m"}):
        text = CalibrationCard(results).render().text
        sections = re.split(r"^#{2,3} .*$", text.replace(BEGIN, "").replace(END, ""), flags=re.MULTILINE)[1:]
        assert all(section.strip() for section in sections[1:]) and "None" not in text
        assert ("### Training" in text) == ("training" in results)
        assert ("### Evaluation protocol" in text) == ("n" in results)
    text = CalibrationCard(full).render().text
    assert "| before | 1,000 |" in text and "this model + temperature scaling" in text
    assert "load_calibrator('org/model')" in text and "hf-calib verify org/model\n" in text
    assert "TCE |" not in text  # nothing is known of it


def test_what_users_write_is_text(tmp_path):
    training = {
        "objective": NASTY,
        "settings": {NASTY: NASTY},
        "budget": [NASTY],
        "recipe": f"x: |\n  ```\n{NASTY}",
        "command": NASTY,
    }
    results = {
        **RESULTS,
        **dict.fromkeys(("model", "dataset", "split", "prompt_template", "system_prompt", "explanation"), NASTY),
    }
    results |= {"training": {**training, "base_model": NASTY}, "repo_id": None, "dataset_config": NASTY}
    results |= {
        "with_calibrator": {**RESULTS, "calibrator": NASTY},
        "inherited": {"license": NASTY, "language": [NASTY]},
    }
    for key in ("n", "accuracy", "ece_p_value_holm"):
        results[f"group/{NASTY}/{key}"] = 0.0
    results["n_groups"] = 1
    (tmp_path / "results.json").write_text(json.dumps(results))
    path = write_card(tmp_path)
    again = path.read_text()
    assert write_card(tmp_path).read_text() == again  # the marker inside is none
    card = ModelCard.load(path)
    assert card.data.license == NASTY and yaml.safe_load(card.data.to_yaml())["license"] == NASTY
    rendered = html(card.text)
    assert "<script" not in rendered.lower() and 'javascript:y"' not in rendered and "49" not in rendered
    plain = html(
        CalibrationCard({**RESULTS, "training": training | {"settings": {"a": "b"}}, "with_calibrator": RESULTS})
        .render()
        .text
    )
    for tag in ("<h2", "<h3", "<tr", "<table", "<em", "<a ", "<img", "<pre", "<details"):
        assert rendered.count(tag) == plain.count(tag), tag


ALIGNMENT = AlignmentReport(
    models={
        "reference": {"pair_accuracy": Estimate(0.5, 0.4, 0.6)},
        "aligned": {"pair_accuracy": Estimate(0.9, 0.8, 1.0), "margin": Estimate(2.0, 1.5, 2.5)},
        "repaired": {"margin_retention": Estimate(0.97, 0.95, 0.99), "kl_per_token": Estimate(float("nan"), 0.0, 0.1)},
    },
    margin_kind="implicit_reward",
    n_pairs=80,
    n_prompts=64,
    n_tokens=4096,
    max_new_tokens=128,
    weights={"repaired": "abc"},
)


def test_alignment_on_the_card(tmp_path):
    assert "### Alignment" not in CalibrationCard(RESULTS).render().text
    results = {**RESULTS, "alignment": ALIGNMENT.to_dict()}
    write_json(tmp_path / "results.json", results)
    text = write_card(tmp_path).read_text()
    assert "| measure | before alignment [95%] | aligned, before the repair [95%] | this model [95%] |" in text
    assert "| margin_retention | – | – | 0.970 [0.950, 0.990] |" in text and "kl_per_token" not in text
    assert "Pairs: 80; the margin is the implicit reward against the reference." in text
    assert "Free-form answers were not evaluated" not in text
    named = {**ALIGNMENT.to_dict(), f"{NASTY}/pair_accuracy": 0.5}
    rendered = html(CalibrationCard({**RESULTS, "alignment": named}).render().text)
    assert "<script" not in rendered.lower() and "| measure" not in rendered


def test_alignment_is_pushed_with_the_weights_it_was_measured_on(hub, example, tmp_path, capsys):
    weights = read(example.folder / "after" / "results.json")["weights"]
    path = example.folder / "after" / "alignment.json"
    write_json(path, replace(ALIGNMENT, weights={"repaired": weights}).to_dict())
    out = tmp_path / "dry"
    assert main(example.call("alice/dry", "--dry_run", "true", "--output_dir", str(out))) == 0
    assert read(out / "results.json")["alignment"]["repaired/margin_retention"] == 0.97
    assert "### Alignment" in (out / "README.md").read_text()
    path.rename(tmp_path / "alignment.json")
    given = ["--dry_run", "true", "--output_dir", str(tmp_path / "other"), "--alignment"]
    assert main(example.call("alice/dry", *given, str(tmp_path))) == 0
    write_json(tmp_path / "alignment.json", ALIGNMENT.to_dict())
    capsys.readouterr()
    for place, named in ((str(tmp_path), "measured on other weights"), (str(tmp_path / "no"), "no such file")):
        assert main(example.call("alice/dry", *given, place)) == 2
        assert named in capsys.readouterr().err
    assert main(example.call("alice/dry", *given, str(tmp_path), "--merge", "true")) == 2
    assert "--alignment is of the adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [("allenai/ai2_arc", "allenai/ai2\\_arc"), ("a|b\nc", "a\\|b c"), ("<b>", "&lt;b&gt;"), ("&#35;", "&amp;\\#35;"), ("x\u202ey\x00", "xy")],
)  # fmt: skip
def test_escape(text, shown):
    assert escape(text) == shown


def test_a_fence_is_longer_than_any_inside():
    block = fenced("a\n````\nb\n<!-- hf_calib: end -->", "yaml")
    assert block.startswith("`````yaml\n") and END not in block
    assert html(block).count("<code") == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"accuracy": "<script>"}, "accuracy is '<script>', not a number"),
        ({"dataset": ["a"]}, "dataset is ['a'], not a text"),
        ({"regime": "wonderful"}, "regime is 'wonderful'"),
        ({"scoring": "vibes"}, "scoring is 'vibes'"),
        ({"figures": {"../../x.png": "x"}}, "figures names '../../x.png'"),
        ({"figures": {"x.png) <b>": "x"}}, "figures names"),
        ({"before": {"n": 3}}, "it lacks accuracy"),
        ({"training": "x"}, "training is 'x', not an object"),
        ({"alignment": {"repaired/margin": "<b>"}}, "alignment: repaired/margin is"),
    ],
)
def test_results_that_are_none_are_refused(tmp_path, change, named, capsys):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | change))
    assert main(["push", "--dry_run", "true", "--evaluation", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error and not (tmp_path / "README.md").exists()


def test_command(tmp_path, hub, capsys):
    assert main(["push", "--dry_run", "true", "--evaluation", str(tmp_path / "no.json")]) == 2
    assert "no.json: no such file" in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps([RESULTS]))
    assert main(["push", "--dry_run", "true", "--evaluation", str(tmp_path)]) == 2
    assert "take one" in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    assert main(["push", "--dry_run", "true", "--evaluation", str(tmp_path)]) == 1
    assert "its front matter cannot be read" in capsys.readouterr().err
    (tmp_path / "README.md").unlink()
    assert main(["push", "--dry_run", "true", "--evaluation", str(tmp_path / "results.json")]) == 0
    assert_card_states(ModelCard.load(tmp_path / "README.md"), read(tmp_path / "results.json"))


def test_a_dry_run_writes_everything_and_asks_nothing_of_the_hub(hub, example, tmp_path, capsys):
    asked, out = len(hub.requests), tmp_path / "dry"
    assert main(example.call("alice/dry", "--dry_run", "true", "--output_dir", str(out))) == 0
    assert str(out) in capsys.readouterr().out and (out / "model.safetensors").is_file()
    assert_card_states(ModelCard.load(out / "README.md"), read(out / "results.json"))
    assert not (example.folder / "model" / "results.json").exists()
    evaluation = str(example.folder / "after")
    call = ["push", "--dry_run", "true", "--what", "predictions", "--evaluation", evaluation]
    assert main(call) == 0
    assert (example.folder / "after-dataset" / "data" / "test.parquet").is_file()
    assert main(["push", "--dry_run", "true", "--what", "metric"]) == 0
    assert len(hub.requests) == asked
    for wrong in (["--merge", "true"], ["--calibrator", "x"]):
        assert main([*call, *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err
