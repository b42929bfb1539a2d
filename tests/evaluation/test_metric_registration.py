"""`evaluate.load("ece_regime")` in new processes and folders, with a loopback Hub, an unreachable one and offline."""

import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import huggingface_hub
import pytest
from hub_server import serve
from huggingface_hub import HfApi

import hf_calib
from hf_calib.cli.main import main
from hf_calib.evaluation.metric_registration import register, resolve, unregister


LOAD = """
import evaluate
metric = evaluate.load({name!r})
print(metric.compute(predictions=[[0.9, 0.1]] * 30, references=[0] * 24 + [1] * 6)["overconfidence"])
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the Hub is on loopback
    with serve(tmp_path / "hub", {"hf_alice": ["alice"], "hf_evaluate": ["evaluate-metric"]}) as server:
        yield server


@pytest.fixture
def python(hub, tmp_path):
    """Run code in a new process, in an empty folder, with the loopback Hub and its own cache."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_alice",
        "HF_HUB_OFFLINE": "0",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }
    for name in ("HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_EVALUATE_OFFLINE"):
        environment.pop(name, None)

    def run(code: str, **more: str) -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=elsewhere, env={**environment, **more}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def dead_address() -> str:
    with socket.socket() as probe:  # a free port, where nothing listens
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_bare_name(python, hub):
    load = LOAD.format(name="ece_regime")
    python(
        "import evaluate, hf_calib\n"
        "try:\n    evaluate.load('ece_regime')\n"
        "except FileNotFoundError:\n    hf_calib.register()\n"
        "else:\n    raise SystemExit('it was there before')"
    )
    # online, offline, and with an unreachable Hub: evaluate reads its settings at each load
    settings = (
        "import evaluate.config as config\n"
        "online = config.HUB_EVALUATE_URL, config.HF_EVALUATE_OFFLINE\n"
        "for config.HUB_EVALUATE_URL, config.HF_EVALUATE_OFFLINE in (online, (online[0], True), ({dead!r}, False)):\n"
    )
    settings = settings.format(dead=dead_address() + "/{path}/{revision}/{name}")
    before = len(hub.requests)
    values = python(settings + "".join(f"    {line}\n" for line in load.strip().splitlines())).split()
    assert [float(value) for value in values] == pytest.approx([0.1] * 3)
    requested = hub.requests[before:]
    assert requested and all(status == 404 for *_, status in requested)


def test_offline(python, hub):
    """Offline the Hub gets no request, and a path and the name of a folder load like a registered name."""
    clone = str(Path(hf_calib.metric_path()).parents[1])
    code = (
        "import hf_calib; hf_calib.register()\n"
        + "".join(LOAD.format(name=name) for name in ("ece_regime", hf_calib.metric_path()))
        + f"import os; os.chdir({clone!r})"
        + LOAD.format(name="metrics/ece_regime")
    )
    before = len(hub.requests)
    printed = python(code, HF_EVALUATE_OFFLINE="1", HF_HUB_OFFLINE="1")
    assert [float(line) for line in printed.split()] == pytest.approx([0.1] * 3)
    assert len(hub.requests) == before


def test_upgrade_of_the_package(cache, python, tmp_path):
    """The registered script imports the package that is installed when it is loaded."""
    script = register()
    site, root = tmp_path / "site", Path(hf_calib.__file__).parents[1]
    for folder in ("hf_calib", "metrics"):
        shutil.copytree(root / folder, site / folder, ignore=shutil.ignore_patterns("__pycache__"))
    package = site / "hf_calib" / "__init__.py"
    package.write_text(package.read_text().replace(f'"{hf_calib.__version__}"', '"99.0.0"'))
    code = "import evaluate, hf_calib; evaluate.load('ece_regime'); print(hf_calib.__version__)"
    assert python(code, PYTHONPATH=str(site), HF_MODULES_CACHE=str(cache)) == "99.0.0\n"
    assert script.exists()


# Configuration of evaluate in this process


@pytest.fixture
def cache(hub, tmp_path, monkeypatch):
    address = evaluate.config.HUB_EVALUATE_URL.replace(evaluate.config.HF_ENDPOINT, hub.url)
    monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", address)
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "modules"


def test_command(cache, monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str]:
        status = main(["register", *arguments])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    status, text = run("--check")
    assert status == 1 and "resolves to: nothing" in text and "the Hub has no such metric" in text
    status, text = run()
    assert status == 0 and "resolves to: registered" in text
    assert run("--check") == (0, text.split("\n", 1)[1])
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
        assert "offline" in run("--check")[1]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.config, "HUB_EVALUATE_URL", dead_address() + "/{path}/{revision}/{name}")
        assert "not reachable" in run("--check")[1]
    status, text = run("--check", "--remove")
    assert status == 2 and "exclude each other" in text
    status, text = run("--remove")
    assert status == 0 and "removed" in text and not list(cache.rglob("ece_regime.py"))
    assert run("--remove") == (0, "nothing was registered\n")


def test_second_registration_leaves_one_script(cache):
    script = register()
    assert register() == script
    earlier = script.parents[1] / ("0" * 64) / script.name  # of another version of the package
    earlier.parent.mkdir()
    earlier.write_text(script.read_text() + "# earlier\n")
    register()
    assert list(cache.rglob("ece_regime.py")) == [script]


def test_folder_without_a_script(cache):
    """Such a folder hides every script from evaluate. It is named, and a registration removes it."""
    script = register()
    empty = script.parents[1] / ("a" * 64)
    empty.mkdir()
    assert not resolve().ours and resolve().path == str(empty)
    register()
    assert resolve().ours and not empty.exists()


def test_concurrent_processes(cache):
    """Concurrent registrations and removals raise no error and leave a registration that loads."""

    def run(index: int) -> None:
        for _ in range(50):
            register() if index % 2 == 0 else unregister()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run, index) for index in range(4)]:
            done.result()
    register()
    assert resolve().ours


def test_order_of_precedence(cache, hub, tmp_path, monkeypatch):
    """A script in the folder, a Space and a downloaded script are told apart."""

    def found() -> tuple[str, bool]:
        registration = resolve()
        return registration.resolves_to, registration.ours

    script = register()
    assert found() == ("registered", True)
    local = tmp_path / "ece_regime" / "ece_regime.py"
    local.parent.mkdir()
    local.write_text("class Other: ...\n")
    assert found() == ("folder", False)
    shutil.rmtree(local.parent)

    downloaded = script.parents[1] / ("f" * 64) / script.name
    downloaded.parent.mkdir()
    downloaded.write_text("class Other: ...\n")
    os.utime(downloaded, (script.stat().st_mtime + 1,) * 2)  # evaluate takes the newest
    assert found() == ("cached", False)
    register()  # makes ours the newest
    os.utime(script, (downloaded.stat().st_mtime + 1,) * 2)
    assert found() == ("registered", True)
    assert unregister() == [script] and downloaded.exists()  # downloaded scripts are kept

    api = HfApi(endpoint=hub.url, token="hf_evaluate")
    space = {"repo_id": "evaluate-metric/ece_regime", "repo_type": "space"}
    api.create_repo(**space, space_sdk="gradio")
    api.upload_file(**space, path_in_repo="ece_regime.py", path_or_fileobj=b"class Other: ...\n")
    assert found() == ("hub", False)


def test_cache_is_not_writable(cache, capsys):
    cache.write_text("a file where the folder should be")
    assert main(["register"]) == 1
    message = capsys.readouterr().err
    assert "HF_MODULES_CACHE" in message
