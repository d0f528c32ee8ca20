"""Pictures of results: one self-contained HTML page, and one contact sheet for a PNG file.

Both are made from plain facts (`Picture`, `Ranking`), not from a collection, so that the demo, the
command line and a notebook draw whatever they have.
"""

from rmacjax.pictures.contents import contents_page
from rmacjax.pictures.page import THUMBNAIL_PX, result_page
from rmacjax.pictures.rankings import (
    Picture,
    Ranking,
    box_for_people,
    duration,
    printable,
    ranking,
    settings_in_words,
)
from rmacjax.pictures.sheet import contact_sheet

__all__ = [
    "THUMBNAIL_PX",
    "Picture",
    "Ranking",
    "box_for_people",
    "contact_sheet",
    "contents_page",
    "duration",
    "printable",
    "ranking",
    "result_page",
    "settings_in_words",
]
