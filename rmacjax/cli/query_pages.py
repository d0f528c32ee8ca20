"""A page per query, for looking at what a measurement got wrong: `rmacjax evaluate --html`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rmacjax.cli.terminal import write_text

if TYPE_CHECKING:
    from rmacjax.collection import Collection
    from rmacjax.datasets import GroundTruth
    from rmacjax.measurement import Measured, Row
    from rmacjax.pictures import Ranking
    from rmacjax.retrieval import Query, Retrieved

ON_PAGE = 20
"""Results shown on a query's page."""


class Pages:
    """A page per query, and one that lists them, the worst first."""

    def __init__(self, folder: str, collection: "Collection", truth: "GroundTruth") -> None:
        os.makedirs(folder, exist_ok=True)
        for old in Path(folder).glob("query-[0-9][0-9][0-9][0-9].html"):
            old.unlink()  # of another measurement
        self._folder = folder
        self._collection = collection
        self._truth = truth

    def draw(self, number: int, described: "Query", found: "Retrieved") -> None:
        """Write one query's page: what was found, the true boxes, right and wrong."""
        from rmacjax.pictures import result_page

        shown = self._ranking(number, described, found)
        query = self._truth.queries[number]
        text = result_page([shown], title=query.name, lead=f"Query {number + 1}")
        with open(os.path.join(self._folder, _page(number)), "w", encoding="utf-8") as file:
            file.write(text)

    def _ranking(self, number: int, described: "Query", found: "Retrieved") -> "Ranking":
        from rmacjax.pictures import Picture, Ranking
        from rmacjax.retrieval import boxes_in_pixels

        query, truth = self._truth.queries[number], self._truth
        snapshot = self._collection.gallery().snapshot
        numbers = {os.path.abspath(path): i for i, path in enumerate(truth.paths)}
        right, ignored = set(query.positives.tolist()), set(query.junk.tolist())
        pictures = []
        top = zip(found.ranking.indices[:ON_PAGE].tolist(), found.ranking.scores, strict=False)
        for index, score in top:
            path = snapshot.paths[index]
            known = numbers.get(path)
            size = (int(snapshot.sizes_px[index][0]), int(snapshot.sizes_px[index][1]))
            boxes = boxes_in_pixels(found, index, snapshot.map_sizes[index].tolist(), size)
            pictures.append(
                Picture(
                    path,
                    *size,
                    tuple(boxes),
                    float(score),
                    None if known is None else query.boxes.get(known),
                    None if known in ignored else known in right,
                )
            )
        asked = Picture(
            query.path,
            described.height_px,
            described.width_px,
            (described.box_px,),
            name=query.name,
        )
        return Ranking(asked, pictures, dict(found.seconds))

    def finish(self, measured: "Measured") -> None:
        """Write the list of all queries with their scores, the worst first."""
        import numpy as np

        from rmacjax.pictures import contents_page

        for number, why in measured.unusable.items():
            name = self._truth.queries[number].name
            text = contents_page([], title=name, lead=f"Query {number + 1}: {why}", headings=[])
            with open(os.path.join(self._folder, _page(number)), "w", encoding="utf-8") as file:
                file.write(text)
        columns = [row.scores[main_score(row)].per_query for row in measured.rows]
        worst = np.argsort(np.nan_to_num(columns[0], nan=2.0), kind="stable")
        rows = [
            (
                _page(number),
                self._truth.queries[number].name,
                ["-" if np.isnan(each[number]) else f"{each[number]:.3f}" for each in columns],
            )
            for number in worst.tolist()
        ]
        text = contents_page(
            rows,
            title=f"Queries of {self._truth.name}",
            lead=f"Average precision ({main_score(measured.rows[0])}), the worst query by "
            f"{measured.rows[0].name!r} first. Each page shows what the whole search came to.",
            headings=["query", *(row.name for row in measured.rows)],
        )
        write_text(os.path.join(self._folder, "index.html"), text)


def _page(number: int) -> str:
    return f"query-{number + 1:04}.html"


def main_score(row: "Row") -> str:
    """The score that stands for a row: of the revisited protocol, medium."""
    return "mAP" if "mAP" in row.scores else "mAP M"
