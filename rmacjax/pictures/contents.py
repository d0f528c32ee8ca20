"""The page in front of many result pages: a table whose first column leads to them."""

import html
from collections.abc import Sequence

from rmacjax.pictures.rankings import printable

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "td,th{padding:.2rem .8rem;text-align:right}td:first-child,th:first-child{text-align:left}"
    "tr:nth-child(even) td{background:#8882}"
)


def contents_page(
    rows: Sequence[tuple[str, str, Sequence[str]]],
    *,
    title: str,
    lead: str = "",
    headings: Sequence[str],
) -> str:
    """One HTML page with a table, each row of which leads to another page.

    Args:
        rows: for each page its address, its name, and a text for every heading but the first.
        title: the page's heading.
        lead: a sentence below it.
        headings: of the columns, the first that of the names.

    Returns:
        The page's text, which encodes as UTF-8.
    """
    head = "".join(f"<th>{_text(heading)}</th>" for heading in headings)
    body = "\n".join(
        f'<tr><td><a href="{_text(address)}">{_text(name)}</a></td>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        + "</tr>"
        for address, name, cells in rows
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{_text(title)}</h1><p>{_text(lead)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(printable(value), quote=True)
