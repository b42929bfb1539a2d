"""Report on the alignment of a model before and after a repair: estimates, tables and a summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measures.bootstrap import Estimate


if TYPE_CHECKING:
    from rich.table import Table

REFERENCE, ALIGNED = "reference", "aligned"
ALIGNMENT = "alignment.json"  # file of a report

# Meaning of each measure in one sentence, and how its values are printed.
MEASURES = {
    "pair_accuracy": ("Share of pairs whose chosen completion is the likelier one.", "{:.3f}"),
    "reward_accuracy": ("Share of pairs with a positive implicit reward margin.", "{:.3f}"),
    "margin": ("Mean preference margin of the chosen over the rejected completion, in nats.", "{:.2f}"),
    "margin_retention": ("The margin divided by that of the aligned model.", "{:.3f}"),
    "kl_per_token": ("KL(aligned ‖ model) on texts that the aligned model wrote, in nats a token.", "{:.4f}"),
    "top1_agreement": ("Share of their tokens at which both models prefer the same one.", "{:.3f}"),
    "perplexity": ("Perplexity of the texts.", "{:.2f}"),
    "perplexity_ratio": ("The perplexity divided by that of the aligned model.", "{:.3f}"),
    "length": ("Mean number of tokens that the model writes.", "{:.1f}"),
    "end_rate": ("Share of its texts that end before the limit of tokens.", "{:.3f}"),
}
PROMPTS = {
    "given": "{:,} given prompts",
    "package": "{:,} chat prompts of the package",
    "none": "{:,} empty prompts, because the tokenizer does not know the words of the package's",
}
MARGINS = {"implicit_reward": "implicit reward against the reference", "log_ratio": "log-ratio"}
# Text counts as unchanged up to this divergence, in nats a token, and this relative change of the perplexity.
SAME_KL, SAME_PERPLEXITY = 0.05, 0.03


@dataclass(kw_only=True)
class AlignmentReport:
    """
    What a repair left of the alignment of a model. `MEASURES` explains the measures.

    Args:
        models (`dict[str, dict[str, Estimate]]`):
            Measures of each model, with 95% intervals. The names are `"reference"` (the model before alignment, if it
            was measured), `"aligned"`, and those of the repaired models.
        margin_kind (`str`, *optional*):
            `"implicit_reward"`: the margin of the log-likelihoods minus that of the reference, as in DPO with a beta
            of 1. `"log_ratio"`: that of the log-likelihoods, where there is no reference.
        perplexity_texts (`str`, *optional*, defaults to `"generated"`):
            What the perplexity is of: `"given"` texts, or those that the aligned model `"generated"`.
        prompts_kind (`str`, *optional*, defaults to `"given"`):
            What the texts are sampled on: `"given"` prompts, the chat prompts of the `"package"`, or `"none"`, only
            the token that begins a text, where the tokenizer has unknown tokens in all prompts of the package.
        n_pairs (`int`), n_prompts (`int`), n_texts (`int`), n_tokens (`int`):
            Number of pairs, prompts, given texts, and tokens that the aligned model wrote.
        n_pairs_left_out (`int`), n_prompts_left_out (`int`):
            Number of pairs and prompts that were too long.
        max_new_tokens (`int`):
            Limit of the length of a generated text.
        weights (`dict[str, str]`):
            Digest of the weights of each model.

    Example:

    ```python
    >>> from hf_calib.evaluation.alignment_report import AlignmentReport
    >>> from hf_calib.measures.bootstrap import Estimate
    >>> report = AlignmentReport(models={"repaired": {"margin_retention": Estimate(0.97, 0.95, 0.99)}})
    >>> report.models["repaired"]["margin_retention"].value
    0.97

    ```
    """

    models: dict[str, dict[str, Estimate]]
    margin_kind: str | None = None
    perplexity_texts: str = "generated"
    prompts_kind: str = "given"
    n_pairs: int = 0
    n_pairs_left_out: int = 0
    n_prompts: int = 0
    n_prompts_left_out: int = 0
    n_texts: int = 0
    n_tokens: int = 0
    max_new_tokens: int = 0
    weights: dict[str, str] | None = None

    @classmethod
    def load(cls, path: str | Path) -> AlignmentReport:
        """
        Load an alignment.json, or that of a folder.

        Raises:
            `ValueError`: if it holds no alignment report.
            `FileNotFoundError`: if there is no such file.
        """
        path = Path(path)
        path = path / ALIGNMENT if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; `hf-calib diagnose --repaired` writes one.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_dict(content if isinstance(content, dict) else {})
        except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path} is not an alignment report: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers in a flat dictionary: `<model>/<measure>`, with `_low` and `_high`."""
        flat = {name: value for name, value in asdict(self).items() if name not in ("models", "weights")}
        for name, measures in self.models.items():
            for measure, estimate in measures.items():
                flat |= estimate.named(f"{name}/{measure}")
        return flat | {f"{name}/weights": digest for name, digest in (self.weights or {}).items()}

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> AlignmentReport:
        """
        Make a report of the result of [`AlignmentReport.to_dict`], perhaps read from a file.

        Raises:
            `ValueError`: if a value has the wrong type.
        """
        kinds = {field.name: int if field.name.startswith(("n_", "max_")) else str for field in fields(cls)[1:-1]}
        settings = {name: flat[name] for name in kinds if flat.get(name) is not None}
        models: dict[str, dict[str, Estimate]] = {}
        weights = {}
        for name, value in settings.items():
            if not isinstance(value, kinds[name]):
                raise ValueError(f"alignment: {name} is {value!r}, not {kinds[name].__name__}")
        for name, known in (("margin_kind", MARGINS), ("prompts_kind", PROMPTS)):
            if settings.get(name) not in (None, *known):
                raise ValueError(f"alignment: {name} is {settings[name]!r}, not one of {', '.join(known)}")
        for key, value in flat.items():
            name, _, measure = key.rpartition("/")
            if measure == "weights":
                weights[name] = str(value)
            elif measure in MEASURES and name:
                numbers = [flat.get(f"{key}{end}") for end in ("", "_low", "_high")]
                if not all(isinstance(number, (int, float, type(None))) for number in numbers):
                    raise ValueError(f"alignment: {key} is {numbers!r}, not a number with an interval")
                estimate = Estimate(*(nan if number is None else float(number) for number in numbers))
                models.setdefault(name, {})[measure] = estimate
        if not models:
            raise ValueError("alignment: there is no measure of any model")
        return cls(models=models, weights=weights or None, **settings)

    @property
    def repaired(self) -> list[str]:
        """Names of the repaired models."""
        return [name for name in self.models if name not in (REFERENCE, ALIGNED)]

    def text_unchanged(self, name: str) -> bool:
        """Whether a model writes as the aligned one: by the divergence, and by the perplexity."""
        found = self.models[name]
        change = abs(found["perplexity_ratio"].value - 1)
        return found["kl_per_token"].value <= SAME_KL and change <= SAME_PERPLEXITY

    def rows(self) -> list[list[str]]:
        """A row of each measure: its name, the values with their intervals, and the meaning."""
        rows = []
        for measure, (meaning, form) in MEASURES.items():
            cells = [_cell(found.get(measure), form) for found in self.models.values()]
            if {"–"} != set(cells):
                rows.append([measure, *cells, meaning])
        return rows

    def table(self, title: str | None = "Alignment") -> Table:
        """Format the rows for the terminal."""
        from rich import box
        from rich.table import Table

        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        table.add_column("measure", no_wrap=True)
        for name in self.models:
            table.add_column(f"{name} [95%]", justify="right", no_wrap=True)
        for row in self.rows():
            table.add_row(*row[:-1])
        return table

    def print(self) -> None:
        """Print the table; a narrow terminal wraps the lines."""
        from .tables import print_plain

        print_plain(self.table())

    def markdown(self, names: Mapping[str, str] | None = None) -> str:
        """
        Format the rows in Markdown.

        Args:
            names (`Mapping[str, str]`, *optional*):
                Headings of models, if not their names.
        """
        heads = [f"{(names or {}).get(name, name)} [95%]" for name in self.models]
        header, rule = ["measure", *heads, "what it means"], ["---", *("---:" for _ in heads), "---"]
        return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *self.rows()))

    def section(self) -> str:
        """Format a section of a report in Markdown: table and method."""
        return f"## Alignment\n\n{self.markdown()}\n\n{self.method()}"

    def of(self, weights: str) -> AlignmentReport:
        """
        Keep the aligned model, its reference, and the repaired model with these weights.

        Raises:
            `ValueError`: if none of the repaired models has them.
        """
        name = next((name for name in self.repaired if (self.weights or {}).get(name) == weights), None)
        if name is None:
            raise ValueError(
                "the alignment was measured on other weights, or in another dtype: measure this model with "
                "`hf-calib diagnose --repaired`."
            )
        kept = {each: measures for each, measures in self.models.items() if each in (REFERENCE, ALIGNED, name)}
        return replace(self, models=kept)

    def method(self) -> str:
        """How the numbers were measured, in sentences."""
        parts = [
            f"KL and agreement: {self.n_tokens:,} tokens, at most {self.max_new_tokens} a text, that the aligned "
            f"model sampled on {PROMPTS[self.prompts_kind].format(self.n_prompts)}. length and end_rate: each "
            "model's own texts on them."
        ]
        if self.n_pairs:
            parts.append(f"Pairs: {self.n_pairs:,}; the margin is the {MARGINS[self.margin_kind]}.")
        of = f"{self.n_texts:,} given texts" if self.perplexity_texts == "given" else "the aligned model's texts"
        parts.append(f"Perplexity: of {of}.")
        for number, unit in ((self.n_pairs_left_out, "pairs"), (self.n_prompts_left_out, "prompts")):
            if number:
                parts.append(f"{number:,} {unit} were left out, too long for the context or with unknown words.")
        return " ".join(parts)

    def lines(self) -> list[str]:
        """Summarise each repaired model in a sentence."""
        return [self._line(name) for name in self.repaired]

    def _line(self, name: str) -> str:
        found, parts = self.models[name], []
        if (retention := found.get("margin_retention")) is not None:
            kept = f"keeps {retention.value:.1%} [{retention.low:.1%}, {retention.high:.1%}] of the preference margin"
            if isnan(retention.value):
                kept = "the aligned model has no preference margin above zero to keep"
            parts.append(kept)
        parts.append(
            f"the divergence from the aligned model is {found['kl_per_token'].value:.3f} nats a token, both prefer "
            f"the same token at {found['top1_agreement'].value:.1%}, and the perplexity is "
            f"{found['perplexity_ratio'].value:.3f} times as large"
        )
        text = "as before" if self.text_unchanged(name) else "changed"
        return f"Alignment of the {name} model: {'; '.join(parts)}. Text: {text}."


def _cell(estimate: Estimate | None, form: str) -> str:
    if estimate is None or isnan(estimate.value):
        return "–"
    if estimate.low == estimate.high:
        return form.format(estimate.value)
    value, low, high = map(form.format, estimate)
    return f"{value} [{low}, {high}]"
