"""The package as a whole: its public names, what an import costs, the layers, the wheel, the tested versions."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hf_calib
from hf_calib import extras


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_calib"

# Folders from the lowest layer to the highest. A module imports from its own layer and those below.
LAYERS = [
    ("measures", "data", "paths", "extras"),
    ("regime", "plots", "inference", "losses"),
    ("posthoc", "prediction_files", "served"),
    ("evaluation",),
    ("hub",),
    ("trainers",),
    ("training",),
    ("cli", "__main__"),
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """Everything a module names in an import statement, at its top or inside a function."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            found.add(source)
            found.update(f"{source}.{alias.name}" for alias in node.names)
    return found


def run_python(code: str, **options) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)
    assert run.returncode == 0, run.stderr
    return run.stdout


# Public names


@pytest.mark.parametrize("name", hf_calib.__all__)
def test_public_name_imports(name):
    assert getattr(hf_calib, name) is not None
    assert name in dir(hf_calib)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'expected_callibration_error'"):
        hf_calib.expected_callibration_error  # noqa: B018


def test_import_is_free():
    heavy = {"numpy", "torch", "transformers", "trl", "datasets", "sklearn", "matplotlib"}
    loaded = run_python("import sys, hf_calib; dir(hf_calib); print(*sys.modules)").split()
    assert not heavy & set(loaded)


def without(*packages: str) -> str:
    """Code that makes imports of packages fail as if they were not installed."""
    return f"""
import importlib.util, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {packages} else find_spec(name, package)
"""


def test_measures_work_without_torch():
    code = (
        without("torch", "transformers", "trl", "datasets", "sklearn", "matplotlib")
        + """
from hf_calib import calibration_report, classify_regime, collapse_report, order_report
data = [[0.9, 0.1], [0.2, 0.8]] * 20, [0, 0] * 20
calibration_report(*data), classify_regime(*data), collapse_report(*data), order_report([data[0]] * 2, data[1])
"""
    )
    run_python(code)


def test_everything_but_the_training_works_without_the_extra_train():
    code = (
        without("trl", "peft", "deepspeed")
        + """
import importlib, hf_calib
for name in hf_calib._MODULE_OF:
    if hf_calib._MODULE_OF[name].split(".")[0] not in ("trainers", "training"):
        getattr(hf_calib, name)
for name in ("evaluate", "diagnose", "calibrate", "threshold", "answer", "push", "verify", "register", "transfer"):
    importlib.import_module(f"hf_calib.cli.{name}")
try:
    hf_calib.CalibratedSFTTrainer
except ImportError as error:
    print(error)
from hf_calib.cli.main import main
for call in (["train", "--config", "x.yaml"], ["quickstart"]):
    assert main(call) == 2
"""
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == 'This needs trl: pip install "hf_calib[train]".'
    assert [line.split(":")[0] for line in run.stderr.splitlines()] == ["hf-calib train", "hf-calib quickstart"]
    assert run.stderr.count('pip install "hf_calib[train]"') == 2


@pytest.mark.parametrize(
    ("installed", "warns"),
    [("1.14.2", True), ("1.15.0", False), ("1.16.3", False), ("1.17.0.dev0", True), ("2.0.0", True)],
)
def test_a_trl_that_was_not_tried_gives_a_warning(installed, warns, monkeypatch, recwarn):
    monkeypatch.setattr(extras, "version", lambda name: installed)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    extras.warn_untried_trl()
    assert [str(w.message).split("with TRL")[-1] for w in recwarn] == [" from 1.15 and below 1.17."] * warns


@pytest.mark.parametrize(
    ("installed", "gpu", "warns"), [("1.15.0", False, True), ("1.15.0", True, False), ("1.16.0", False, False)]
)
def test_a_trl_that_trains_on_gpus_alone_gives_a_warning_without_one(installed, gpu, warns, monkeypatch, recwarn):
    monkeypatch.setattr(extras, "version", lambda name: installed)
    for device in ("cuda", "xpu"):
        monkeypatch.setattr(f"torch.{device}.is_available", lambda: gpu)
    extras.warn_untried_trl()
    assert [str(w.message).split(": ")[-1] for w in recwarn] == [
        "to train on this machine, install TRL 1.16 or newer."
    ] * warns


# Layers


@pytest.mark.parametrize("module", [module for module in MODULES if module != "hf_calib"])
def test_imports_go_downwards(module):
    folder = module.split(".")[1]
    assert folder in LAYER_OF, f"{module} is in no layer: add its folder to LAYERS"
    for name in imports(module):
        if name.startswith("hf_calib.") and name in MODULES:
            other = name.split(".")[1]
            assert LAYER_OF[other] <= LAYER_OF[folder], f"{module} imports {name}, which is in a higher layer"


def test_no_import_cycles():
    def targets(module):
        # a package imports the modules in it; that these name their package as a path is no import of what it holds
        return {name for name in imports(module) if name in MODULES and not f"{module}.".startswith(f"{name}.")}

    graphlib.TopologicalSorter({module: targets(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_only_training_and_its_command_import_trl(module):
    if not module.startswith(("hf_calib.trainers", "hf_calib.training", "hf_calib.cli.train")):
        assert "trl" not in {name.split(".")[0] for name in imports(module)}


def test_the_declared_range_of_trl_holds_what_was_tried():
    (trl,) = [requirement for requirement in requirements("train") if requirement.name == "trl"]
    assert all(trl.specifier.contains(".".join(map(str, minor))) for minor in extras.TRIED_TRL)


def test_help_is_fast():
    """The help of the program imports no numerical library, that of a command that does not train no trl and no torch."""
    code = "import sys; from hf_calib.cli.main import main; main([{}'--help']); print(*sys.modules)"
    assert not {"numpy", "yaml", "torch", "transformers"} & set(run_python(code.format("")).split())
    for command in (
        "restore",
        "evaluate",
        "measure",
        "diagnose",
        "calibrate",
        "threshold",
        "answer",
        "push",
        "verify",
        "register",
        "quickstart",
        "transfer",
    ):
        loaded = set(run_python(code.format(f"'{command}', ")).split())
        assert not {"torch", "datasets", "trl", "peft", "sklearn"} & loaded, command


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # built from a copy: setuptools writes into the folder it builds from
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("hf_calib", "metrics", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    run = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return next(folder.glob("*.whl"))


def test_wheel_contains_everything(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (entry_points,) = [name for name in held if name.endswith("entry_points.txt")]
        assert "hf-calib = hf_calib.cli.main:main" in archive.read(entry_points).decode()
    code = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    carried = {
        f"hf_calib/{path.relative_to(ROOT).as_posix()}"
        for folder in ("metrics", "recipes")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".md", ".txt", ".j2") and "__pycache__" not in path.parts
    }
    assert code | carried | {"hf_calib/py.typed", "hf_calib/data/chat_prompts.txt"} <= held
    assert {name.split("/")[0] for name in held} == {"hf_calib", f"hf_calib-{hf_calib.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_sdist_builds_the_same_wheel(wheel, tmp_path):
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    source = wheel.parent / "source"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True, timeout=120, cwd=source)
    (sdist,) = tmp_path.glob("hf_calib-*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, sdist]
    run = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = tmp_path.glob("*.whl")
    names = [{name for name in zipfile.ZipFile(path).namelist() if "dist-info" not in name} for path in (built, wheel)]
    assert names[0] == names[1]


def test_wheel_works_in_an_environment_of_its_own(wheel, tmp_path):
    """The environment holds the wheel; its requirements are those of the tests, without the extra `train`."""
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    (site / "requirements.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    code = (
        without("trl", "peft", "deepspeed")
        + """
import evaluate, hf_calib
assert "venv" in hf_calib.__file__, hf_calib.__file__
metric = evaluate.load(str(hf_calib.metric_path()))
print(metric.compute(predictions=[[0.9, 0.1], [0.3, 0.7]], references=[0, 1])["ece"])
"""
    )
    run = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(0.2)


def test_wheel_works_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    code = "import hf_calib; print(hf_calib.__file__); print(hf_calib.recipe_path('accelerate_configs/ddp.yaml'))"
    lines = run_python(code, cwd=elsewhere, env={"PYTHONPATH": str(site)}).split()
    assert [Path(line).is_relative_to(site) for line in lines] == [True, True]


# Versions


def requirements(*extras: str) -> list[Requirement]:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    lines = "\n".join(groups).splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_constraints_pin_what_setup_cfg_asks_for():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = requirements("train", "served", "app", "conformal", "deepspeed", "dev")
    wrong = [str(r) for r in wanted if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))]
    assert not wrong, f"constraints.txt does not pin these within their range: {wrong}"


def test_the_oldest_constraints_are_the_lower_bounds():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))
    for requirement in requirements():
        (lowest,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        assert Version(pins[requirement.name]) == Version(lowest), requirement.name


def test_setup_cfg_asks_for_what_is_imported():
    roots = {name.split(".")[0] for module in MODULES for name in imports(module)}
    foreign = roots - set(sys.stdlib_module_names) - {"hf_calib"}
    distributions = packages_distributions()
    groups = ("train", "conformal", "served", "deepspeed")
    declared = {canonicalize_name(requirement.name) for requirement in requirements(*groups)}
    missing = {root for root in foreign if not declared & {canonicalize_name(d) for d in distributions.get(root, [])}}
    assert not missing, f"imported, but not in install_requires: {sorted(missing)}"


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_calib.__version__
