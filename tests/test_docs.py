"""Run the README, the guides and the examples as written; check every command, link and anchor of the documentation."""

import json
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from hf_calib.cli.main import main
from hf_calib.cli.parser import CommandParser


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
FOLDERS = ("docs", "examples", "recipes", "metrics", "benchmarks")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a language, in their order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def calls(block: str) -> Iterator[list[str]]:
    """Arguments of each `hf-calib` call in a block of shell commands, those of `accelerate launch` as `hf-calib` calls."""
    loop, values = None, [""]
    for line in block.replace("\\\n", " ").splitlines():
        if found := re.match(r"for (\w+) in (.*); do", line):
            loop, values = found[1], found[2].split()
        elif line.strip() == "done":
            loop, values = None, [""]
        for value in values:
            words = shlex.split(line.replace(f"${loop}", value) if loop else line, comments=True)
            if "recipes/train.py" in words:
                yield ["train", *words[words.index("recipes/train.py") + 1 :]]
            elif words[:2] == ["accelerate", "launch"] and (module := {"hf_calib", "hf_calib.cli"} & set(words)):
                yield words[words.index(module.pop()) + 1 :]
            elif words[:1] == ["hf-calib"]:
                yield words[1:]


# Every page


class Parsed(Exception):
    """A command's arguments are valid."""


@pytest.mark.parametrize("page", NAMES)
def test_commands_parse(page, monkeypatch, capsys):
    """Each argument exists, and has a valid value; recipes are read."""
    parse = CommandParser.parse

    def parse_only(parser, argv):
        parse(parser, argv)
        raise Parsed

    monkeypatch.setattr(CommandParser, "parse", parse_only)
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "bash"):
        for argv in calls(block):
            try:
                assert main(argv) == 0 and "--help" in argv, f"{shlex.join(argv)}\n{capsys.readouterr().err}"
            except Parsed:
                pass


def anchors(path: Path) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", NAMES)
def test_links(page):
    path = ROOT / page
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        target = (path.parent / target).resolve() if target else path
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page} links to {link}, which is no heading"


@pytest.mark.parametrize("folder", ["hf_calib", "metrics", "recipes", "benchmarks", "tests"])
def test_pages_named_in_code_exist(folder):
    for path in (path for suffix in ("py", "yaml", "j2") for path in (ROOT / folder).rglob(f"*.{suffix}")):
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), f"{path.relative_to(ROOT)} names {page}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


# Pages that are run


def run_page(page: str) -> None:
    """Run the shell commands, then the Python, which reads what they write."""
    for block in blocks(page, "bash"):
        for argv in calls(block):
            # The small models of the tests do not reach the target of a threshold.
            assert main(argv) in ((0, 1) if argv[0] == "threshold" else (0,)), shlex.join(argv)
    names = {"pairs": Dataset.from_parquet("pairs.parquet")}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


def write_files_of_other_tools(folder: Path) -> None:
    """The files that the guide on predictions names, of 40 questions each."""
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(4), size=40), rng.integers(4, size=40)
    samples, batch = [], []
    for row, options in enumerate(probabilities):
        arguments = {f"gen_args_{k}": {"arg_0": "?", "arg_1": f" {letter}"} for k, letter in enumerate("ABCD")}
        responses = [[str(np.log(p)), "False"] for p in options]
        common = {"doc_id": row, "target": str(labels[row]), "filter": "none"}
        samples.append({**common, "arguments": arguments, "filtered_resps": responses})
        top = [{"token": letter, "logprob": float(np.log(p))} for letter, p in zip("ABCD", options, strict=True)]
        content = [{"token": "A", "logprob": top[0]["logprob"], "top_logprobs": top}]
        body = {"object": "chat.completion", "choices": [{"logprobs": {"content": content}}]}
        batch.append({"custom_id": f"q{row}", "response": {"body": body}})
    for name, rows in (("samples_arc_easy", samples), ("samples_openbookqa", samples), ("batch_output", batch)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "results" / "model").mkdir(parents=True)
    shutil.copy(folder / "samples_arc_easy.jsonl", folder / "results" / "model")
    table = pd.DataFrame({f"p_{k}": probabilities[:, k] for k in range(4)}).assign(label=labels)
    for name in ("predictions", "before", "after"):
        table.to_csv(folder / f"{name}.csv", index=False)
    pd.DataFrame({"id": [f"q{row}" for row in range(40)], "label": labels}).to_csv(folder / "answers.csv", index=False)
    yes = probabilities[:, 0]
    scores = pd.DataFrame({"p_yes": yes, "p_no": 1 - yes, "gold": np.where(labels < 2, "yes", "no")})
    scores.to_csv(folder / "scores.csv", index=False)
    confidences = pd.DataFrame({"confidence": probabilities.max(1), "correct": probabilities.argmax(1) == labels})
    confidences.to_csv(folder / "confidences.csv", index=False)


@pytest.fixture(scope="module")
def models_and_files(tmp_path_factory, tiny_tokenizers, tiny_llama):
    """A folder in which the models and files that the pages name exist."""
    folder = tmp_path_factory.mktemp("named")
    for seed, name in enumerate(("sft-model", "aligned-model")):
        tiny_llama(tiny_tokenizers["qwen"], seed=seed).save_pretrained(folder / "org" / name)
        tiny_tokenizers["qwen"].save_pretrained(folder / "org" / name)
    colours = ["green", "blue", "red", "black"]
    for split, n in (("train", 48), ("test", 40), ("questions", 90)):
        rows = [{"question": f"Which colour has {split} {i}?", "choices": colours, "answer": i % 4} for i in range(n)]
        Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    pairs = [
        {"prompt": f"Name colour {i}:", "chosen": f" {colours[i % 4]}", "rejected": f" {colours[i % 4 - 1]}"}
        for i in range(32)
    ]
    Dataset.from_list(pairs).to_parquet(folder / "pairs.parquet")
    write_files_of_other_tools(folder)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


@pytest.fixture(scope="module")
def without_gpu():
    """The guides leave out `use_cpu=True`, which their Python needs without a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
        yield


@pytest.fixture(scope="module")
def repaired(models_and_files, without_gpu, tmp_path_factory):
    """The folder after the guide `repair`, on which the other guides build."""
    folder = tmp_path_factory.mktemp("repaired") / "folder"
    shutil.copytree(models_and_files, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page("docs/guides/repair.md")
    return folder


def test_readme_runs(models_and_files, evaluate_cache, tmp_path, monkeypatch):
    shutil.copytree(models_and_files, tmp_path / "folder")
    monkeypatch.chdir(tmp_path / "folder")
    run_page("README.md")
    assert Path("restored/report.md").exists() and Path("restored/results.json").exists()


@pytest.mark.parametrize(
    "page",
    [
        "docs/getting-started.md",
        "docs/guides/post-hoc.md",
        "docs/guides/diagnose.md",
        "docs/guides/measure-predictions.md",
        "docs/guides/choose-a-threshold.md",
        "docs/guides/align-without-losing-calibration.md",
        "docs/concepts/which-measure.md",
    ],
)
def test_guide_runs(page, repaired, evaluate_cache, monkeypatch):
    monkeypatch.chdir(repaired)
    run_page(page)


# Examples


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory):
    """The examples share the folder in which they keep their models."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture
def in_example_folder(example_folder, monkeypatch):
    monkeypatch.chdir(example_folder)
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize("name", ["measure_predictions", "repair_a_model", "calibrated_dpo"])
def test_example(name, in_example_folder, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    errors = [float(value) for value in re.findall(r"\bece\W+([\d.]+)", capsys.readouterr().out)]
    if name == "repair_a_model":
        before, after = errors
        assert after < before / 2
    else:
        assert errors


def test_notebook(in_example_folder):
    names = {}
    for cell in json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    assert names["after"].probabilities.shape == (2000, 4)
