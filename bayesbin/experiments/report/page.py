"""One HTML page that needs nothing but itself: no script, no network, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

from bayesbin import __version__
from bayesbin.plots import Figure

_DPI = 160
_PIXELS_PER_INCH = 104  # on the page, where there is room


@dataclass(frozen=True)
class Cell:
    """A table's cell: a text; for a number also its full value, and what follows it in small print."""

    text: str
    value: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads; the first cell of a row is its name."""

    name: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A figure: what it shows in words, for who cannot see it, and how to read it."""

    alt: str
    caption: str
    figure: Figure
    kind: ClassVar[str] = "picture"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on a wide page, in pixels."""
        width, height = self.figure.get_size_inches()
        return round(_PIXELS_PER_INCH * width), round(_PIXELS_PER_INCH * height)

    @property
    def source(self) -> str:
        """The picture itself, as a data URL."""
        buffer = BytesIO()
        # Without the drawing library's version, so that the same run gives the same page.
        self.figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, then tables and pictures."""

    name: str
    title: str
    sentences: Sequence[str]
    parts: Sequence[Table | Picture] = ()


def page(title: str, sections: Sequence[Section]) -> str:
    """The page as text. Whatever it was given is escaped."""
    from jinja2 import Environment, StrictUndefined  # only a page needs it

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content: dict[str, Any] = {"title": title, "sections": sections, "version": __version__}
    return environment.from_string(_PAGE).render(style=_STYLE, **content)


_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --quiet: #5a5a5a; --line: #d7d7d7; --back: #fff;
  --link: #005a8f; --stripe: #f5f6f7 }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --quiet: #adadad; --line: #454545;
  --back: #17181a; --link: #7cc4f2; --stripe: #202225 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 1rem 1.1rem 3rem; background: var(--back);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line) }
p { max-width: 46rem; margin: .5rem 0 }
a { color: var(--link) }
nav ol { padding-left: 1.4rem; columns: 15rem }
.scroll { overflow-x: auto; max-width: 100%; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--quiet); padding-bottom: .4rem;
  max-width: min(46rem, calc(100vw - 2.2rem)) }
th, td { padding: .3rem .8rem .3rem .3rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line) }
th:first-child { text-align: left; font-weight: 600; min-width: 7rem }
thead th { font-weight: 600 }
tbody tr:nth-child(odd) { background: var(--stripe) }
.settings td { text-align: left; overflow-wrap: anywhere }
small { display: block; color: var(--quiet); white-space: nowrap }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start }
figure { margin: 1rem 0; max-width: 100% }
figure img { display: block; width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 4px }
figcaption { color: var(--quiet); font-size: .9rem; padding-top: .4rem }
footer { color: var(--quiet); font-size: .85rem; margin-top: 3rem }
@media (max-width: 32rem) { body { padding: .8rem .7rem 2rem } table { font-size: .78rem }
  th, td { padding: .25rem .45rem .25rem .2rem } th:first-child { min-width: 4.5rem }
  small { white-space: normal } }
@media print { nav { display: none } h2, figure, table { break-inside: avoid } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style|safe }}</style>
</head>
<body>
<header><h1>{{ title }}</h1></header>
<nav aria-label="Contents">
<ol>
{% for section in sections %}
<li><a href="#{{ section.name }}">{{ section.title }}</a></li>
{% endfor %}
</ol>
</nav>
<main>
{% for section in sections %}
<section id="{{ section.name }}">
<h2>{{ section.title }}</h2>
{% for sentence in section.sentences %}
<p>{{ sentence }}</p>
{% endfor %}
{% for part in section.parts if part.kind == "table" %}
<div class="scroll" role="region" tabindex="0" aria-label="{{ part.caption }}">
<table id="{{ part.name }}-table"{% if not part.heads %} class="settings"{% endif %}>
<caption>{{ part.caption }}</caption>
{% if part.heads %}
<thead>
<tr>{% for head in part.heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr>
</thead>
{% endif %}
<tbody>
{% for row in part.rows %}
<tr>
{% for cell in row %}
{% if loop.first %}
<th scope="row">{{ cell.text }}</th>
{% elif cell.value is none %}
<td>{{ cell.text }}</td>
{% else %}
<td><data value="{{ cell.value }}">{{ cell.text }}</data>
{%- if cell.note %}<small>{{ cell.note }}</small>{% endif %}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endfor %}
{% set pictures = section.parts|selectattr("kind", "equalto", "picture")|list %}
{% if pictures %}
<div class="pictures">
{% for part in pictures %}
<figure style="width: {{ part.size[0] }}px">
<img src="{{ part.source }}" alt="{{ part.alt }}" width="{{ part.size[0] }}" height="{{ part.size[1] }}">
<figcaption>{{ part.caption }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
</section>
{% endfor %}
</main>
<footer>Written by bayesbin {{ version }}.</footer>
</body>
</html>
"""
