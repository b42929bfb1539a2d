"""benchmarks/headline/headline_world.py: a run on a small world with random models; its ratios."""

import json
import sys

import headline_world
import numpy as np
import pytest
from headline_world import METHODS, compare, half_width, ratio_of_means

from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.training.quickstart import STAGES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The world of seed 0, with models that are not trained."""
    folder = tmp_path_factory.mktemp("headline")
    world = World(WorldConfig(style_agreement=2.0))
    (folder / "w0" / "world").mkdir(parents=True)
    world.questions(200, split="test").to_parquet(folder / "w0" / "world" / "test.parquet")
    world.questions(150, split="train").to_parquet(folder / "w0" / "world" / "train.parquet")
    world.style_pairs(100).to_parquet(folder / "w0" / "world" / "style_pairs.parquet")
    for seed, stage in enumerate(STAGES):
        world.model(seed).save_pretrained(folder / "w0" / stage.name)
        world.tokenizer().save_pretrained(folder / "w0" / stage.name)
    return folder


def run(monkeypatch, folder, *methods):
    command = ["headline_world.py", "--output_dir", str(folder), "--seeds", "0", "--budgets", "100"]
    monkeypatch.setattr(sys, "argv", [*command, "--num_test", "200", "--num_pairs", "100", "--methods", *methods])
    monkeypatch.setitem(headline_world.EPOCHS, 100, 1)
    headline_world.main()


def test_every_method_runs_and_is_kept(folder, monkeypatch, capsys):
    run(monkeypatch, folder, *METHODS)
    means = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["means"]
    assert set(means) == {f"100/{name}" for name in METHODS}
    for name, mean in means.items():
        assert mean["nll"] > 0 and 0 <= mean["one_vs_rest_debiased"] <= mean["one_vs_rest"], name
    assert means["100/aligned"]["margin"] == pytest.approx(1) and means["100/parent"]["margin"] == pytest.approx(0)
    assert means["100/temperature"]["margin"] == pytest.approx(1)
    assert means["100/anchor alone"]["nll"] != means["100/aligned"]["nll"]
    files = {path: path.stat().st_mtime_ns for path in (folder / "w0" / "outcomes").rglob("*.npz")}
    assert len(files) == len(METHODS)
    run(monkeypatch, folder, "aligned", "RCFT")
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["means"]
    assert again["100/RCFT"]["nll"] == pytest.approx(means["100/RCFT"]["nll"], abs=1e-6)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def cell(ece, margin=1.0):
    return {"ece": ece, "one_vs_rest_debiased": ece / 2, "nll": 1.0, "margin": margin}


def test_ratios_are_of_means_to_rivals_that_see_no_more_and_stay_aligned():
    cells = {
        (100, "aligned"): [cell(0.2), cell(0.2)],
        (100, "temperature"): [cell(0.04), cell(0.06)],
        (100, "SFT + temperature"): [cell(0.01, 0.2), cell(0.01, 0.2)],
        (100, "anchor alone"): [cell(0.005), cell(0.015)],
        (100, "RCFT"): [cell(0.02), cell(0.02)],
        (100, "RCFT + parent"): [cell(0.01), cell(0.02)],
    }
    rows = {row["ours"]: row for row in compare(cells, [100])}
    assert rows["RCFT"]["ece"][:2] == ["temperature", pytest.approx(0.4)]
    assert rows["RCFT + parent"]["ece"][:2] == ["anchor alone", pytest.approx(1.5)]


def test_interval_of_a_ratio_is_that_of_the_jackknife():
    rng = np.random.default_rng(0)
    others = rng.uniform(1, 2, 50)
    ratio, half = ratio_of_means(0.5 * others + 0.01 * rng.standard_normal(50), others)
    assert ratio == pytest.approx(0.5, abs=0.01)
    assert half == pytest.approx(half_width(0.01 * rng.standard_normal(50)) / others.mean(), rel=0.4)
    assert np.isnan(ratio_of_means([1.0], [2.0])[1])
