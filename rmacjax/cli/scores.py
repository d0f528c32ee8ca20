"""What `rmacjax evaluate` reports: a table, sentences, Markdown, JSON, and a page per query."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from rmacjax import __version__
from rmacjax.cli.terminal import LISTED, count, finite, say, table, write_json, write_text

if TYPE_CHECKING:
    from rmacjax.collection import AddReport, Collection
    from rmacjax.datasets import GroundTruth
    from rmacjax.measurement import Measured, Row, Trust
    from rmacjax.recipes import Recipe

from rmacjax.cli.query_pages import main_score

FEW_QUERIES = 5
"""Of fewer, an interval says nothing."""


@dataclass(frozen=True)
class Facts:
    """What was measured, and how.

    Attributes:
        truth: the photos and queries.
        distractors: how many of the photos were added to it.
        collection: what was searched.
        added: what describing took.
        weights: as the command named them.
        whitening: what it was learned on by this command, or None.
        recipe: its name, or None.
        options: all options of the command.
    """

    truth: "GroundTruth"
    distractors: int
    collection: "Collection"
    added: "AddReport"
    weights: str
    whitening: str | None
    recipe: str | None
    options: Mapping[str, object]

    def document(self) -> dict[str, object]:
        """Everything that is needed to measure the same again."""
        from rmacjax.descriptors import fingerprint
        from rmacjax.weights import locate
        from rmacjax.weights.conversion import file_sha256

        params, settings = self.collection.params, self.collection.settings
        used = params.whitening is not None and settings.whiten
        own = "that of the weights" if used else "none"
        new = self.added.added + self.added.replaced
        return {
            "data": self.truth.name,
            "protocol": self.truth.protocol,
            "queries": len(self.truth.queries),
            "photos": len(self.collection),
            "distractors": self.distractors,
            "first_stage": self.options["first_stage"],
            "skipped": [list(each) for each in self.added.skipped],
            "weights": self.weights,
            "weights_sha256": file_sha256(locate(self.weights)),
            "whitening": self.whitening or own,
            "recipe": self.recipe,
            "command": sys.argv,
            "fingerprint": fingerprint(params, settings),
            "settings": asdict(settings),
            "options": {name: value for name, value in self.options.items() if value is not None},
            "versions": self.versions(),
            "photos_described": new,
            "photos_per_second": round(new / max(self.added.seconds, 1e-9), 2) if new else None,
        }

    def unusable(self, measured: "Measured") -> tuple[list[str], dict[str, object]]:
        """Positives and queries that could not be described, and what that did to the scores."""
        there = set(self.collection.paths)
        lacking = {
            number
            for number, path in enumerate(self.truth.paths)
            if os.path.abspath(path) not in there
        }
        missed = [len(lacking.intersection(q.positives.tolist())) for q in self.truth.queries]
        words = []
        if any(missed):
            words.append(
                f"{count(sum(missed), 'positive')} of {queries(sum(map(bool, missed)))} "
                "could not be used as photos: they count as missed"
            )
        if measured.unusable:
            words.append(
                f"{queries(len(measured.unusable))} could not be used: what they ask for counts as "
                "not found"
            )
        return words, {
            "positives_missed": sum(missed),
            "queries_unusable": [
                [self.truth.queries[number].path, why] for number, why in measured.unusable.items()
            ],
        }

    def line(self) -> str:
        """The settings in one line, for below a table."""
        from rmacjax.descriptors import REGIONAL

        settings, options = self.collection.settings, self.options
        document = self.document()
        facts = {
            "data": self.truth.name,
            "photos": len(self.collection),
            "distractors": self.distractors,
            "queries": self._queries(),
            "weights": f"{os.path.basename(self.weights)} ({document['weights_sha256']!s:.12})",
            "last pool": "yes" if self.collection.params.network.last_pool else "no",
            "whitening": document["whitening"],
            "pool": settings.pool,
            **({"levels": settings.levels} if settings.pool in REGIONAL else {}),
            "scales": " ".join(f"{scale:g}" for scale in settings.scales),
            "long side": settings.long_side,
            "rerank": options["rerank"],
            "expand": options["expand"],
            "fusion": options["fusion"],
            "first stage": options["first_stage"],
        }
        if self.added.skipped:
            facts["photos that could not be used"] = len(self.added.skipped)
        facts |= self.versions()
        return ", ".join(f"{name} {value}" for name, value in facts.items())

    def _queries(self) -> str:
        """How many queries, and what of their photos is searched for."""
        number = len(self.truth.queries)
        outlined = sum(query.box_px is not None for query in self.truth.queries)
        if self.options["queries"] == "whole" or not outlined:
            return f"{number} whole"
        return (
            f"{number} cropped" if outlined == number else f"{number}, {outlined} of them cropped"
        )

    def versions(self) -> dict[str, str]:
        """Of the programs that measured, and what they ran on."""
        import jax

        return {
            "rmacjax": __version__,
            **{name: version(name) for name in ("jax", "jaxlib", "numpy", "pillow")},
            "python": platform.python_version(),
            "device": jax.default_backend(),
        }


def queries(number: int) -> str:
    """So many queries, in words."""
    return f"{number:,} quer{'y' if number == 1 else 'ies'}"


def report(
    measured: "Measured",
    trusted: Sequence["Trust"],
    facts: Facts,
    recipe: "Recipe | None",
    different: Sequence[str],
    markdown: str | None,
    json: str | None,
) -> None:
    """Print and write the scores.

    Args:
        measured: the rows.
        trusted: what scores say of presence.
        facts: what was measured.
        recipe: what to compare with.
        different: in what the run is not the recipe's, see `rmacjax.cli.published`.
        markdown: a file for the table, or None.
        json: a file for everything, "-" or None.
    """
    from rmacjax.cli.published import compared
    from rmacjax.pictures import duration

    headings, lines = _table(measured.rows)
    verdicts = [] if recipe is None else compared(measured.rows, recipe, different)
    differences = _differences(measured.rows)
    footnotes, unusable = facts.unusable(measured)
    if measured.unusable:
        say(f"{queries(len(measured.unusable))} could not be used:")
        for why in [*measured.unusable.values()][:LISTED]:
            say(f"  {why}")
        if len(measured.unusable) > LISTED:
            say(f"  and {len(measured.unusable) - LISTED} more (all of them with --json)")
    if json != "-":
        table(headings, lines)
        if facts.options["queries"] == "whole":
            say("Queries are whole photos, not outlined objects: not comparable with published.")
        times = ", ".join(f"{stage} {duration(t)}" for stage, t in measured.seconds.items())
        say(f"Per query: {times}; first stage (the row 'filter'): {facts.options['first_stage']}")
        for sentence in [*footnotes, *(each["words"] for each in differences), *verdicts]:
            say(str(sentence))
        for each in trusted:
            say(_in_words(each))
    if markdown is not None:
        rows = [" | ".join(line) for line in lines]
        text = "| " + " | ".join(headings) + " |\n|---|" + "--:|" * (len(headings) - 1)
        text += "".join(f"\n| {row} |" for row in rows)
        sentences = [
            *footnotes,
            facts.line(),
            *(str(each["words"]) for each in differences),
            *verdicts,
        ]
        sentences += map(_in_words, trusted)
        write_text(markdown, text + "".join(f"\n\n{sentence}" for sentence in sentences) + "\n")
    if json is not None:
        write_json(
            json,
            facts.document()
            | unusable
            | {
                "query_names": [query.name for query in facts.truth.queries],
                "rows": [_document(row) for row in measured.rows],
                "differences": differences,
                "trust": [_trust_document(each) for each in trusted],
                "compared_with_published": verdicts,
                "unlike_the_recipe": list(different),
                "seconds_per_query": {k: round(t, 6) for k, t in measured.seconds.items()},
            },
        )


def _table(rows: Sequence["Row"]) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    shown = [name for name in rows[0].scores if name[:2] != "mP"]
    headings = {"search": "left"}
    for name in shown:
        headings |= {name: "right", f"{name} 95 %": "right"} if name[:3] == "mAP" else {}
        headings |= {} if name[:3] == "mAP" else {name: "right"}
    headings["overlap"] = "right"
    lines = []
    for row in rows:
        cells = [row.name]
        for name in shown:
            score = row.scores[name]
            if name[:3] == "mAP":
                cells += [f"{score.mean:.3f}", f"{score.low:.3f} to {score.high:.3f}"]
            else:
                cells.append(f"{score.mean:.1%}")
        cells.append("-" if row.overlap != row.overlap else f"{row.overlap:.3f}")
        lines.append(tuple(cells))
    return headings, lines


def _document(row: "Row") -> dict[str, object]:
    first = row.scores[main_score(row)]
    place = row.scores.get("first place")
    return {
        "search": row.name,
        "map": finite(first.mean),
        "first_place": None if place is None else finite(place.mean),
        "overlap": finite(row.overlap),
        "true_boxes": row.boxes,
        "per_query": [finite(ap) for ap in first.per_query],
        "scores": {
            name: {
                "mean": finite(score.mean),
                "interval": [finite(score.low), finite(score.high)],
                "per_query": [finite(value) for value in score.per_query],
            }
            for name, score in row.scores.items()
        },
    }


def _differences(rows: Sequence["Row"]) -> list[dict[str, object]]:
    """Each further row beside the first: by how much, and whether it is more than chance."""
    from rmacjax.evaluation import paired_difference

    found: list[dict[str, object]] = []
    for row in rows[1:]:
        for name in (name for name in row.scores if name[:3] == "mAP"):
            scores, before = row.scores[name].per_query, rows[0].scores[name].per_query
            count = int((scores == scores).sum())
            if not count:
                continue
            each = paired_difference(scores, before)
            real = each.excludes_zero and count >= FEW_QUERIES
            words = (
                f"{row.name!r} beside {rows[0].name!r}: {name} {each.mean:+.3f} "
                f"({each.low:+.3f} to {each.high:+.3f}), "
            )
            if count < FEW_QUERIES:
                words += f"of which {count} queries are too few to tell"
            else:
                words += f"{'more than' if real else 'within what'} these queries vary"
            found.append(
                {
                    "search": row.name,
                    "beside": rows[0].name,
                    "score": name,
                    "difference": each.mean,
                    "interval": [each.low, each.high],
                    "real": real,
                    "words": words,
                }
            )
    return found


def may_be_found(absent: int) -> float:
    """Of other absent objects, the share that may be found by a line just above so many's scores.

    The line is the largest of n scores, so all n stay below a share p of others with a probability
    of (1 - p)^n: beyond ``1 - 0.05^(1/n)`` that is less than one in twenty.

    >>> round(may_be_found(5), 3)
    0.451
    """
    return float(1 - 0.05 ** (1 / absent))


def _in_words(each: "Trust") -> str:
    absent = len(each.absent)
    words = f"{each.stage}: a score of {each.threshold:.3f} is reached by "
    if each.curve is not None:
        words += f"{each.hits:.1%} of {len(each.present)} objects that are there and by "
    if absent * 0.01 < 1:
        words += (
            f"none of {absent} that are not (of so few, {may_be_found(absent):.0%} of others may)"
        )
    else:
        words += f"at most 1 % of {absent} that are not"
    if each.curve is not None:
        words += f"; area under the curve {each.curve.auc:.3f}"
    return words


def _trust_document(each: "Trust") -> dict[str, object]:
    return {
        "stage": each.stage,
        "kind": each.kind,
        "threshold": each.threshold,
        "hits": finite(each.hits),
        "auc": None if each.curve is None else each.curve.auc,
        "present": each.present.tolist(),
        "absent": each.absent.tolist(),
        "false_alarms_and_hits": []
        if each.curve is None
        else [
            [float(x), float(y)]
            for x, y in zip(each.curve.false_alarms, each.curve.hits, strict=True)
        ],
    }
