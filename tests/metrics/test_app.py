"""The page of the Space: numbers, figures, error messages, and no requests to other machines."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from markupsafe import escape
from playwright.sync_api import expect, sync_playwright

from hf_calib import accuracy_threshold, calibration_report, risk_coverage


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT = 60_000  # milliseconds: the first figure of a process takes its time on a busy machine
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")


@pytest.fixture(scope="module")
def app(space_module):
    return space_module("app")


def draw(n=300, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(3), n).round(4)
    probabilities[:, 0] = (1 - probabilities[:, 1:].sum(axis=1)).round(4)
    return probabilities, rng.integers(0, 3, n)


def as_csv(probabilities, labels):
    rows = [",".join(map(str, [*row, label])) for row, label in zip(probabilities, labels, strict=True)]
    return "\n".join(["p_0,p_1,p_2,label", *rows])


# Content of the page


def test_numbers_are_those_of_the_metric(app):
    probabilities, labels = draw()
    page, more, numbers = app.measure_text(as_csv(probabilities, labels))
    expected = calibration_report(probabilities, labels)
    assert {key: numbers[key] for key in expected} == pytest.approx(expected)
    assert f"{expected['ece_low']:.3f} – {expected['ece_high']:.3f}" in page and more["visible"]
    json.dumps(numbers, allow_nan=False)


def test_critical_accuracy_and_bins_are_used(app):
    probabilities, labels = draw()
    page, _, numbers = app.measure_text(as_csv(probabilities, labels), " 0.9", 15, "equal_mass")
    assert numbers["critical_accuracy"] == 0.9 and numbers["regime"] == "calibratable"
    assert numbers["ece"] == pytest.approx(
        calibration_report(probabilities, labels, n_bins=15, binning="equal_mass")["ece"]
    )
    assert "Distance to the border" in page


def draw_selective(n=600, seed=3):
    """Confidences that tell the right answers from the wrong ones."""
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.3, 1, n).round(3)
    correct = (rng.random(n) < confidences**0.4).astype(int)
    rows = [f"{confidence},{right}" for confidence, right in zip(confidences, correct, strict=True)]
    return confidences, correct, "\n".join(["confidence,correct", *rows])


def test_threshold_is_that_of_the_measures(app):
    confidences, correct, text = draw_selective()
    page, _, numbers = app.measure_text(text, target_accuracy="0.85")
    found = accuracy_threshold(confidences, correct, 0.85)
    assert found.found and escape(found.sentence(0.85)) in page and "When to trust an answer" in page
    assert numbers["threshold"] == found.threshold
    point = risk_coverage(confidences, correct).coverage_at_risk(0.1)
    assert numbers["coverage_at_risk/0.1"] == point.coverage and "Coverage at risk 10%" in page
    rows = [
        f"{confidence:.3f},{1 - confidence:.3f},{int(not right)}"
        for confidence, right in zip(np.maximum(confidences, 0.501), correct, strict=True)
    ]
    of_options = app.measure_text("\n".join(["p_0,p_1,label", *rows]), target_accuracy="0.85")
    assert of_options[2]["threshold"] == pytest.approx(found.threshold, abs=1e-6)
    page, _, numbers = app.measure_text(text, target_accuracy="")
    assert "threshold" not in numbers and "No threshold" not in page and "Risk and coverage" in page


def test_target_that_few_questions_cannot_show(app):
    page, _, numbers = app.measure_text(draw_selective(n=20)[2])
    assert "there are 20 questions; a guarantee of an accuracy of 0.9" in page and "at least 29" in page
    assert numbers["n"] == 20 and "threshold" not in numbers


@pytest.mark.parametrize(
    ("target", "message"), [("2", "must lie in (0, 1)"), ("nan", "must lie in (0, 1)"), ("90%", "&#39;90%&#39;")]
)
def test_wrong_target_is_a_message(app, target, message):
    page, more, numbers = app.measure_text(draw_selective(n=50)[2], target_accuracy=target)
    assert 'role="alert"' in page and message in page
    assert numbers is None and not more["visible"]


def test_confidences_and_groups(app):
    rows = [f"{0.6 + 0.3 * (i % 2)},{i % 2},{'<b>law</b>' if i % 3 else 'art'}" for i in range(60)]
    page, _, numbers = app.measure_text("\n".join(["confidence,correct,subject", *rows]))
    assert numbers["group/art/n"] == 20 and numbers["n_groups"] == 2
    assert "&lt;b&gt;law&lt;/b&gt;" in page and "<b>law</b>" not in page
    assert "cw_ece" not in numbers and "Classwise" not in page


def test_groups_are_sorted_by_the_lower_end_of_the_interval(app):
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, 1020).round(3)
    correct = rng.random(1020) < confidences - 0.15 * (np.arange(1020) < 1000)
    rows = [
        f"{c},{int(y)},{'few' if i >= 1000 else 'off'}"
        for i, (c, y) in enumerate(zip(confidences, correct, strict=True))
    ]
    page, _, numbers = app.measure_text("\n".join(["confidence,correct,subject", *rows]))
    assert numbers["group/few/ece"] > numbers["group/off/ece"]  # noise
    assert numbers["group/few/ece_low"] < numbers["group/off/ece_low"]
    assert 0 < page.index("<td>off</td>") < page.index("<td>few</td>")
    assert f"{numbers['group/off/ece_low']:.3f} – {numbers['group/off/ece_high']:.3f}" in page


def test_one_sided_outcomes_have_no_auroc(app):
    page, _, numbers = app.measure_text("confidence,correct\n0.9,1\n0.8,1\n")
    assert numbers.get("auroc") is None and "AUROC" not in page


@pytest.mark.parametrize(
    ("text", "critical_accuracy", "message"),
    [
        ("", "", "No predictions"),
        ("p_0,p_1,label\n3.2,-1.1,0", "", "looks like logits"),
        ("p_0,p_1,label\n0.5,0.5,4", "", "<code>label</code> row 0"),
        ('{"probabilities": [[0.5, 0.5]], "label": [4]}', "", "row 0"),
        ('{"probabilities": [], "label": []}', "", "<code>probabilities</code>"),
        ("[" * 100_000, "", "nested too deeply"),
        ('{"\\ud800": [1]}', "", "?"),
        ("p_0,p_1,<script>\n0.5,0.5,0", "", "&lt;script&gt;"),
        ("p_0,p_1,label\n0.5,0.5,0", "high", "&#39;high&#39;"),
        ("p_0,p_1,label\n0.5,0.5,0", "61", "<code>critical_accuracy</code>"),
    ],
)
def test_errors_are_messages(app, text, critical_accuracy, message):
    page, more, numbers = app.measure_text(text, critical_accuracy)
    assert 'role="alert"' in page and message in page
    assert numbers is None and not more["visible"]


def test_missing_file_is_a_message(app):
    assert "No predictions" in app.measure_file(None)[0]


# The page in a browser


class Listener(threading.Thread):
    """Stands in for a proxy, and records every request to another machine."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.calls: list[bytes] = []
        self.start()

    def run(self):
        while True:
            connection, _ = self.socket.accept()
            with connection:
                self.calls.append(connection.recv(200))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(space, tmp_path_factory):
    """Address of the running Space, and the requests of its process to other machines."""
    folder, port, listener = tmp_path_factory.mktemp("space"), free_port(), Listener()
    log = folder / "log"
    environment = {
        **os.environ, "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder), "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), listener.address),
    }  # fmt: skip
    address = f"http://127.0.0.1:{port}/"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=space, env=environment, stdout=output, stderr=output
        )
    try:
        for _ in range(600):
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
        else:
            pytest.fail(f"the page did not come up:\n{log.read_text()}")
        yield address, listener.calls
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, served, browser):
    """A new page. Every request must stay on this machine, and no script may fail."""
    address, calls = served
    context = browser.new_context(viewport=dict(zip(("width", "height"), request.param, strict=True)))
    page = context.new_page()
    page.set_default_timeout(WAIT)
    sent, errors = [], []
    page.on("request", lambda request: sent.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    yield page
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    context.close()
    assert not wide, "the page is wider than its window"
    assert [url for url in sent if not url.startswith((address, "data:", "blob:"))] == []
    assert errors == [] and calls == []


@needs_chromium
def test_pasted_predictions(page):
    probabilities, labels = draw(seed=1)
    expected = calibration_report(probabilities, labels)
    page.locator("#text textarea").fill(as_csv(probabilities, labels))
    page.locator("#measure").click()
    results = page.locator("#results")
    expect(results.locator("figure img")).to_have_count(3, timeout=WAIT)
    assert all(
        image.evaluate("image => image.complete && image.naturalWidth > 100") for image in results.locator("img").all()
    )
    for name, key in (("ECE", "ece"), ("Brier score", "brier"), ("Noise floor", "ece_noise_floor")):
        row = results.locator("tr.measure").filter(has=page.get_by_text(name, exact=True))
        expect(row).to_contain_text(f"{expected[key]:.3f}")

    page.locator("#text textarea").fill("p_0,p_1,label\n3.2,-1.1,0")
    page.locator("#measure").click()
    expect(results.get_by_role("alert")).to_contain_text("looks like logits", timeout=WAIT)
    expect(results.locator("figure")).to_have_count(0)


@needs_chromium
def test_threshold_for_a_target(page):
    confidences, correct, text = draw_selective()
    page.locator("#text textarea").fill(text)
    page.locator("#target-accuracy").get_by_role("textbox").fill("0.85")
    page.locator("#measure").click()
    decision = page.locator("#results .decision")
    expect(decision).to_contain_text(accuracy_threshold(confidences, correct, 0.85).sentence(0.85), timeout=WAIT)
    assert decision.locator("img").evaluate("image => image.complete && image.naturalWidth > 100")
    page.locator("#target-accuracy").get_by_role("textbox").fill("0.999")
    page.locator("#measure").click()
    expect(decision).to_contain_text("needs at least 2995", timeout=WAIT)
    page.locator("#target-accuracy").get_by_role("textbox").fill("1.2")
    page.locator("#measure").click()
    expect(page.locator("#results").get_by_role("alert")).to_contain_text("target_accuracy", timeout=WAIT)


@needs_chromium
def test_uploaded_predictions(page, tmp_path):
    probabilities, labels = draw(seed=2)
    np.savez(tmp_path / "predictions.npz", probabilities=probabilities, labels=labels)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    page.get_by_role("tab", name="Upload").click()
    page.locator("#file input[type=file]").set_input_files(tmp_path / "predictions.npz")
    expect(page.locator("#results figure img")).to_have_count(3, timeout=WAIT)
    expect(page.locator("#results")).to_contain_text(f"{calibration_report(probabilities, labels)['smooth_ece']:.3f}")
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    page.locator("#file input[type=file]").set_input_files(tmp_path / "other.csv")
    expect(page.locator("#results").get_by_role("alert")).to_contain_text("a, b", timeout=WAIT)


@needs_chromium
def test_examples(page, space_module):
    verdicts = {
        "After alignment: overconfident": "Overconfident by 23 points; calibratable",
        "Calibrated": "No sign of miscalibration; calibratable",
        "Memorised questions, with the truth": "Underconfident by 6 points; non-calibratable",
        "Confidences by subject": "Overconfident by 18 points; undetermined",
    }
    assert list(verdicts) == list(space_module("examples").EXAMPLES)
    for label, verdict in verdicts.items():
        page.get_by_text(label, exact=True).first.click()
        expect(page.locator("#results h3").first).to_have_text(verdict, timeout=WAIT)
    expect(page.locator("#results")).to_contain_text("2 of 2 groups are miscalibrated")
    page.get_by_text("What to paste or upload").click()
    expect(page.get_by_text("Probabilities of a row sum to 1")).to_be_visible()
