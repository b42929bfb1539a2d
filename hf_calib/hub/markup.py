"""Escape text of users and repositories in the Markdown of a card."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader


# Markers around the calibration section of a card.
BEGIN, END = "<!-- hf_calib: begin -->", "<!-- hf_calib: end -->"

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "://": "&#58;//", "www.": "www&#46;"}


def _printable(text: str) -> str:
    """Remove control characters and marks of writing direction."""
    return "".join(character for character in text if character.isprintable() or character == "\n")


def escape(value) -> str:
    """Escape a value as one line of plain text, without markup, table cells, links or tags."""
    text = _printable(" ".join(str(value).split()))
    for markup, entity in _ENTITIES.items():
        text = text.replace(markup, entity)
    return re.sub(r"([\\`*_\[\]|~$]|(?<!&)#)", r"\\\1", text)


def fenced(value, language: str = "") -> str:
    """Format a block of code with a fence longer than any inside, and without HTML comments."""
    text = _printable(str(value).expandtabs()).strip("\n").replace("<!--", "<! --").replace("-->", "-- >")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def render(template: str, **content) -> str:
    """Fill a template of hf_calib/hub/templates. Its filters `text` and `code` are [`escape`] and [`fenced`]."""
    environment = Environment(loader=PackageLoader("hf_calib.hub"), trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(text=escape, code=fenced)
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(**content)).strip() + "\n"
