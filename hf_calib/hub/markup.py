"""Text from users and from repositories, made harmless in the Markdown of a card."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader


# Around the section of a card that is ours to replace.
BEGIN, END = "<!-- hf_calib: begin -->", "<!-- hf_calib: end -->"

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "://": "&#58;//", "www.": "www&#46;"}


def _printable(text: str) -> str:
    """Without control characters and those that turn the direction of writing."""
    return "".join(character for character in text if character.isprintable() or character == "\n")


def escape(value) -> str:
    """A value as text of one line that says what it says: no markup, table cell, link or tag begins or ends in it."""
    text = _printable(" ".join(str(value).split()))
    for markup, entity in _ENTITIES.items():
        text = text.replace(markup, entity)
    return re.sub(r"([\\`*_\[\]|~$]|(?<!&)#)", r"\\\1", text)


def fenced(value, language: str = "") -> str:
    """A block of code that its content cannot end: its fence is longer than any inside, and no comment opens or closes there."""
    text = _printable(str(value).expandtabs()).strip("\n").replace("<!--", "<! --").replace("-->", "-- >")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def render(template: str, **content) -> str:
    """Fill a template of hf_calib/hub/templates, which has [`escape`] and [`fenced`] as the filters `text` and `code`."""
    environment = Environment(loader=PackageLoader("hf_calib.hub"), trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(text=escape, code=fenced)
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(**content)).strip() + "\n"
