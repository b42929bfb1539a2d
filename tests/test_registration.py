"""`evaluate.load("ece_regime")` in fresh processes and other folders, against a real Hub on loopback, a dead one, none."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import serve

import hf_calib


TOKENS = {"hf_alice": ["alice"], "hf_evaluate": ["evaluate-metric"]}
REGISTER = "import hf_calib; hf_calib.register()"
LOAD = """
import evaluate
metric = evaluate.load({name!r})
print(metric.compute(predictions=[[0.9, 0.1]] * 30, references=[0] * 24 + [1] * 6)["overconfidence"])
"""


@pytest.fixture
def hub(tmp_path):
    with serve(tmp_path / "hub", TOKENS) as server:
        yield server


@pytest.fixture
def python(hub, tmp_path):
    """Run code in a fresh process, in an empty folder, with an empty cache and the loopback Hub."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_alice",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }
    for name in ("HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_EVALUATE_OFFLINE"):
        environment.pop(name, None)

    def run(*arguments: str, fails: bool = False, cwd: Path = elsewhere, **more: str) -> str:
        arguments = arguments if arguments[0] == "-m" else ("-c", *arguments)
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr if fails else done.stdout

    run.elsewhere = elsewhere
    return run


def dead_address() -> str:
    with socket.socket() as probe:  # nobody listens on a port that was just free
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("network", ["404", "refused", "offline"])
def test_bare_name(python, hub, network):
    settings = {
        "404": {},
        "refused": {"HF_ENDPOINT": dead_address()},
        "offline": {"HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1"},
    }[network]
    load = LOAD.format(name="ece_regime")
    before = len(hub.requests)
    assert "Couldn't find a module script" in python(load, fails=True, **settings)
    python(REGISTER, **settings)
    assert float(python(load, **settings)) == pytest.approx(0.1)
    asked = hub.requests[before:]
    assert bool(asked) == (network == "404") and all(status == 404 for *_, status in asked)


def test_path_and_clone(python):
    assert float(python(LOAD.format(name=hf_calib.metric_path()))) == pytest.approx(0.1)
    clone = Path(hf_calib.metric_path()).parents[1]
    assert float(python(LOAD.format(name="metrics/ece_regime"), cwd=clone)) == pytest.approx(0.1)


def test_space(python):
    """The folder as it is makes a Space, from which others load the metric."""
    push = (
        "import hf_calib, huggingface_hub as hub\n"
        "hub.create_repo('alice/ece_regime', repo_type='space', space_sdk='gradio')\n"
        "hub.upload_folder(repo_id='alice/ece_regime', folder_path=hf_calib.metric_path(), repo_type='space',\n"
        "                  ignore_patterns=['__pycache__/*'])\n"
        "print(*hub.list_repo_files('alice/ece_regime', repo_type='space'))"
    )
    assert {"README.md", "app.py", "ece_regime.py", "requirements.txt"} <= set(python(push).split())
    assert float(python(LOAD.format(name="alice/ece_regime"))) == pytest.approx(0.1)


def test_survives_an_upgrade(python, tmp_path):
    """The registered script imports the package that is installed when it is loaded."""
    site = tmp_path / "site"
    root = Path(hf_calib.__file__).parents[1]
    for folder in ("hf_calib", "metrics"):
        shutil.copytree(root / folder, site / folder, ignore=shutil.ignore_patterns("__pycache__"))
    where = "import evaluate, sys; evaluate.load('ece_regime'); print(sys.modules['hf_calib'].__version__)"
    python(REGISTER, PYTHONPATH=str(site))
    assert python(where, PYTHONPATH=str(site)).split() == [hf_calib.__version__]
    package = site / "hf_calib" / "__init__.py"
    package.write_text(package.read_text().replace(f'"{hf_calib.__version__}"', '"99.0.0"'))
    assert python(where, PYTHONPATH=str(site)).split() == ["99.0.0"]


def test_check_and_remove(python):
    register = ("-m", "hf_calib.cli", "register")
    load = LOAD.format(name="ece_regime")
    assert "resolves to: nothing" in python(*register, "--check", fails=True)
    assert "the Hub has no such metric" in python(*register)
    assert "resolves to: registered" in python(*register, "--check")
    assert "not asked (offline)" in python(*register, "--check", HF_EVALUATE_OFFLINE="1")
    assert "cannot be reached" in python(*register, "--check", HF_ENDPOINT=dead_address())
    assert "exclude each other" in python(*register, "--check", "--remove", fails=True)
    assert "removed" in python(*register, "--remove")
    assert "nothing was registered" in python(*register, "--remove")
    assert "Couldn't find a module script" in python(load, fails=True)


def test_registering_twice_leaves_one_script(python, tmp_path):
    python(f"{REGISTER}; hf_calib.register()")
    scripts = list((tmp_path / "hf" / "modules").rglob("ece_regime.py"))
    assert len(scripts) == 1
    stale = scripts[0].parents[1] / ("0" * 64) / "ece_regime.py"  # of an earlier version of the package
    stale.parent.mkdir()
    stale.write_text(scripts[0].read_text() + "# earlier\n")
    python(REGISTER)
    assert list((tmp_path / "hf" / "modules").rglob("ece_regime.py")) == scripts


RESOLVE = "from hf_calib.registration import resolve; found = resolve(); print(found.resolves_to, found.ours)"


def test_what_goes_first(python):
    """A script in the folder, a Space, what was downloaded: each is named for what it is."""
    python(REGISTER)
    assert python(RESOLVE).split() == ["registered", "True"]
    script = python.elsewhere / "ece_regime" / "ece_regime.py"
    script.parent.mkdir()
    script.write_text("class Other: ...\n")
    assert python(RESOLVE).split() == ["folder", "False"]
    shutil.rmtree(script.parent)
    push = (
        "import huggingface_hub as hub\n"
        "hub.create_repo('evaluate-metric/ece_regime', repo_type='space', space_sdk='gradio')\n"
        "hub.upload_file(repo_id='evaluate-metric/ece_regime', path_in_repo='ece_regime.py', repo_type='space',\n"
        "                path_or_fileobj=b'class Other: ...')"
    )
    python(push, HF_TOKEN="hf_evaluate")
    assert python(RESOLVE).split() == ["hub", "False"]
    assert python(RESOLVE, HF_EVALUATE_OFFLINE="1").split() == ["registered", "True"]


def test_cache_that_cannot_be_written(python, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "modules").write_text("a file where the folder should be")
    message = python("-m", "hf_calib.cli", "register", fails=True)
    assert "cannot be written to" in message and "HF_MODULES_CACHE" in message and "Traceback" not in message
