"""One self-contained HTML page from sections of text, facts and figures."""

import base64
import html
import io
from pathlib import Path

from saccade.files import replacing

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d1d1f; background: #fafaf8; margin: 0 auto; max-width: 62rem;
       padding: 1.5rem 1rem 4rem; }
h1 { font-size: 2rem; margin: 0 0 .3rem; }
h2 { margin: 2.5rem 0 .4rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }
p { max-width: 46rem; } figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; }
figcaption { color: #555; font-size: .9rem; max-width: 46rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e3e3e0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .good { color: #14702c; } .bad { color: #b3261e; }
"""


def figure(plot, caption):
    """A matplotlib figure as HTML, its picture inside; the figure is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    pyplot.close(plot)
    picture = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{picture}"><figcaption>{text}</figcaption></figure>'


def paragraph(text):
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(header, rows):
    """A table; cells are plain text, numbers stand to the right, PASS and FAIL have colours."""
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(cell):
    text = html.escape(str(cell))
    kinds = {"PASS": "good", "yes": "good", "FAIL": "bad", "no": "bad"}
    kind = kinds.get(text, "number" if text[:1].isdigit() else "")
    return f'<td class="{kind}">{text}</td>'


def page(title, introduction, sections):
    """The whole page from (heading, HTML) pairs."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>{content}" for heading, content in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1>{introduction}{body}</body></html>"
    )


def write(path, text):
    """Write a text file under a temporary name, then rename it: never half a file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())
