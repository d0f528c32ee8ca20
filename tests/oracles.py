"""The method in slow, obvious float64 NumPy loops; nothing here looks at how the library does it.

Maps are (h, w, c), boxes half-open (top, left, bottom, right) in cells, as everywhere.
"""

import math
from fractions import Fraction

import numpy as np

RESOLUTION = 2.0**-21
"""Scores closer than this count as equal, as `rmacjax.localization` defines it."""


# Regions.


def rmac_regions(h, w, levels=3):
    """The paper's grid in exact fractions."""
    short, long = min(h, w), max(h, w)
    m = 1
    if long > short:
        misses = []
        for candidate in range(2, 8):
            b = Fraction(long - short, candidate - 1)
            misses.append(abs(1 - b / short - Fraction(4, 10)))
        m = 2 + misses.index(min(misses))
    boxes = []
    for level in range(1, levels + 1):
        side = math.floor(Fraction(2 * short, level + 1))
        if side == 0:
            continue
        count_y = level + (m - 1 if h > w else 0)
        count_x = level + (m - 1 if w > h else 0)
        for i in range(count_y):
            top = math.floor(i * Fraction(h - side, count_y - 1)) if count_y > 1 else 0
            for j in range(count_x):
                left = math.floor(j * Fraction(w - side, count_x - 1)) if count_x > 1 else 0
                boxes.append((top, left, top + side, left + side))
    return np.array(boxes)


def every_box(h, w):
    """All boxes of a map."""
    return [
        (top, left, bottom, right)
        for top in range(h)
        for left in range(w)
        for bottom in range(top + 1, h + 1)
        for right in range(left + 1, w + 1)
    ]


def iou(a, b):
    """Intersection over union, by counting cells."""
    cells = [
        {(y, x) for y in range(box[0], box[2]) for x in range(box[1], box[3])} for box in (a, b)
    ]
    union = cells[0] | cells[1]
    return len(cells[0] & cells[1]) / len(union) if union else 0.0


# Pooling.


def quantize(x, scale=1.0):
    """Level 0..8 of one float32 activation, in exact arithmetic after the scaling."""
    value = float(np.float32(x) * np.float32(scale))
    if math.isnan(value):
        return 0
    return max(0, math.floor((15 + Fraction(min(max(value, -1.0), 128.0))) / 16))


def unit(x):
    """A vector of length one; zero stays zero."""
    length = math.sqrt(sum(float(value) ** 2 for value in x))
    return np.array([float(value) / length if length else 0.0 for value in x])


def box_maximum(a, box):
    """Maximum of each channel over a box; zero where the box is empty."""
    top, left, bottom, right = box
    cells = [a[y, x] for y in range(top, bottom) for x in range(left, right)]
    return np.max(cells, axis=0) if cells else np.zeros(a.shape[2], a.dtype)


def box_generalized_mean(a, box, alpha=10):
    """The paper's sum of powers under a root, over the cells of the box alone."""
    top, left, bottom, right = box
    cells = np.maximum(np.asarray(a[top:bottom, left:right], np.float64), 0)
    return (cells**alpha).sum(axis=(0, 1)) ** (1 / alpha)


def naive_box_generalized_mean(a, box, alpha=10):
    """What a float32 integral image with four look-ups gives."""
    powers = np.asarray(a, np.float32) ** np.float32(alpha)
    table = np.zeros((a.shape[0] + 1, a.shape[1] + 1, a.shape[2]), np.float32)
    table[1:, 1:] = np.cumsum(np.cumsum(powers, 0, dtype=np.float32), 1, dtype=np.float32)
    top, left, bottom, right = box
    total = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return np.maximum(total, 0) ** np.float32(1 / alpha)


def gem(a, p=3):
    """Generalized mean of each channel."""
    return np.mean(np.maximum(np.asarray(a, np.float64), 0) ** p, axis=(0, 1)) ** (1 / p)


def aggregate_regions(vectors, whitening=None):
    """l2, whiten, l2, sum, l2; zero vectors are left out."""
    total = None
    for vector in vectors:
        vector = unit(vector)
        if whitening is not None:
            mean, projection = (np.asarray(part, np.float64) for part in whitening)
            vector = unit(projection @ (vector - mean)) if vector.any() else projection[:, 0] * 0
        total = vector if total is None else total + vector
    return unit(total)


def rmac(a, levels=3, whitening=None, with_global=False):
    """The R-MAC descriptor."""
    boxes = list(rmac_regions(*a.shape[:2], levels))
    if with_global:
        boxes.append((0, 0, *a.shape[:2]))
    return aggregate_regions([box_maximum(a, box) for box in boxes], whitening)


def spoc_centre(a):
    """Mean of each channel, weighted by a Gaussian around the map's centre."""
    h, w, c = a.shape
    sigma = min(h, w) / 2 / 3
    total, weights = np.zeros(c), 0.0
    for y in range(h):
        for x in range(w):
            distance = math.hypot(y + 0.5 - h / 2, x + 0.5 - w / 2)
            weight = math.exp(-(distance**2) / (2 * sigma**2))
            weights += weight
            for k in range(c):
                total[k] += weight * float(a[y, x, k])
    return total / weights


def crow(a):
    """CroW in the order of the paper: spatial weights, sum-pooling, channel weights."""
    h, w, c = a.shape
    a = np.maximum(np.asarray(a, np.float64), 0)
    sums = [[sum(a[y, x]) for x in range(w)] for y in range(h)]
    length = math.sqrt(sum(value**2 for row in sums for value in row))
    pooled = np.zeros(c)
    for y in range(h):
        for x in range(w):
            pooled += a[y, x] * (math.sqrt(sums[y][x] / length) if length else 0.0)
    shares = [sum(a[y, x, k] > 0 for y in range(h) for x in range(w)) / (h * w) for k in range(c)]
    weights = [math.log((c * 1e-6 + sum(shares)) / (1e-6 + share)) for share in shares]
    return np.array([weight * value for weight, value in zip(weights, pooled, strict=True)])


def rgem(a, p=3, levels=3, whitening=None, with_global=False):
    """R-MAC with a generalized mean, not a sum of powers, in each region."""
    boxes = list(rmac_regions(*a.shape[:2], levels))
    if with_global:
        boxes.append((0, 0, *a.shape[:2]))
    vectors = [gem(a[top:bottom, left:right], p) for top, left, bottom, right in boxes]
    return aggregate_regions(vectors, whitening)


def join_scales(vectors, p, whitening=None):
    """Several scales of one image, as published: the generalized mean, l2, whitening, l2."""
    joined = np.zeros(len(vectors[0]))
    for vector in vectors:
        joined += np.asarray(vector, np.float64) ** p / len(vectors)
    return aggregate_regions([joined ** (1 / p)], whitening)


# Localization.


def cosine(a, b):
    """Cosine of two vectors; 0 where one is zero."""
    return float(unit(a) @ unit(b))


class Scorer:
    """Scores of boxes in float64, remembered, and how close any decision was."""

    def __init__(self, a, query, alpha):
        self.a, self.query, self.alpha = np.asarray(a, np.float64), query, alpha
        self.known, self.margin = {}, math.inf

    def __call__(self, box):
        box = tuple(int(edge) for edge in box)
        if box not in self.known:
            pool = box_maximum if self.alpha is None else box_generalized_mean
            arguments = () if self.alpha is None else (self.alpha,)
            self.known[box] = cosine(pool(self.a, box, *arguments), self.query)
        return self.known[box]

    def better(self, score, best):
        """Whether a score beats another; what is nearly undecided is noted in the margin."""
        if score != best:
            self.margin = min(self.margin, abs(score - best - RESOLUTION))
        return score > best + RESOLUTION


def log_ratio_fits(ratio, height, width, max_ratio):
    """The published shape test; a box on the limit is within it."""
    return abs(math.log(ratio / (height / width))) <= math.log(max_ratio) + 1e-6


def candidates(h, w, ratio=None, step=3, max_ratio=1.1):
    """The published grid in its own order, 1-based and inclusive as it is written down."""
    found = []
    for y1 in range(1, h - 1 + 1, step):
        for y2 in range(y1 + 1, h + 1, step):
            for x1 in range(1, w - 1 + 1, step):
                for x2 in range(x1 + 1, w + 1, step):
                    height, width = y2 - y1 + 1, x2 - x1 + 1
                    if ratio is None or log_ratio_fits(ratio, height, width, max_ratio):
                        found.append((y1 - 1, x1 - 1, y2, x2))
    return found


def refine(scorer, box, score, h, w, steps=(3, 2, 1), passes=5, allow=lambda box: True):
    """Move the sides one at a time, keep at once what improves."""
    box = list(box)
    for step in steps:
        for _ in range(passes):
            changed = False
            for side in range(4):
                for sign in (-1, 1):
                    trial = list(box)
                    trial[side] += sign * step
                    top, left, bottom, right = trial
                    if not (0 <= top < bottom <= h and 0 <= left < right <= w and allow(trial)):
                        continue
                    if scorer.better(scorer(trial), score):
                        box, score, changed = trial, scorer(trial), True
            if not changed:
                break
    return score, tuple(box)


def first_best(scorer, boxes):
    """The first of the best boxes in the order given."""
    best = max(scorer(box) for box in boxes)
    for box in boxes:
        if not scorer.better(best, scorer(box)):
            return box
    raise RuntimeError("no box")


def aml(a, query, ratio=None, alpha=10, step=3, max_ratio=1.1, steps=(3, 2, 1), passes=5):
    """AML as published: (score, box, margin); the margin tells how sure its decisions are."""
    h, w, _ = a.shape
    scorer = Scorer(a, query, alpha)
    boxes = candidates(h, w, ratio, step, max_ratio)
    box = first_best(scorer, boxes) if boxes else (0, 0, h, w)
    score, box = refine(scorer, box, scorer(box), h, w, steps, passes)
    return score, box, scorer.margin


def aml_instances(a, query, ratio=None, alpha=10, instances=3, overlap=0.3):
    """AML again and again, away from what was found: [(score, box)], and the margin."""
    h, w, _ = a.shape
    scorer = Scorer(a, query, alpha)
    found = []
    for _ in range(instances):

        def free(box):
            return all(iou(box, other) <= overlap + 1e-9 for _, other in found)

        boxes = [box for box in candidates(h, w, ratio) if free(box)]
        if not boxes and found:
            break
        box = first_best(scorer, boxes) if boxes else (0, 0, h, w)
        found.append(refine(scorer, box, scorer(box), h, w, allow=free))
    return found, scorer.margin


def localize_instances(a, query, ratio=None, max_ratio=None, instances=1, overlap=0.3, alpha=None):
    """All boxes, best first; of equals the smallest, topmost, leftmost, widest: [(score, box)]."""
    h, w, _ = a.shape
    scorer = Scorer(a, query, alpha)
    boxes = [
        box
        for box in every_box(h, w)
        if max_ratio is None or log_ratio_fits(ratio, box[2] - box[0], box[3] - box[1], max_ratio)
    ]
    found = []
    while boxes and len(found) < instances:
        best = max(scorer(box) for box in boxes)
        equal = [box for box in boxes if not scorer.better(best, scorer(box))]
        box = min(equal, key=lambda b: ((b[2] - b[0]) * (b[3] - b[1]), b[0], b[1], b[2]))
        found.append((scorer(box), box))
        boxes = [other for other in boxes if iou(other, box) <= overlap + 1e-9]
    if not found:
        found.append((scorer((0, 0, h, w)), (0, 0, h, w)))
    return found, scorer.margin


# Evaluation. A query without positives has no score: None.


def average_precision(ranking, positives, junk):
    """Area under precision over recall: walk down the ranking, adding one trapezoid a step."""
    if not positives:
        return None
    area, old_recall, old_precision, hits, seen = 0.0, 0.0, 1.0, 0, 0
    for image in ranking:
        if image in junk:
            continue
        seen += 1
        hits += image in positives
        recall, precision = hits / len(positives), hits / seen
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def precision_at(ranking, positives, junk, k):
    """Share of positives among the first k, or up to the last positive where that comes sooner."""
    if not positives:
        return None
    kept = [image for image in ranking if image not in junk]
    places = [place for place, image in enumerate(kept, start=1) if image in positives]
    reach = min(max(places), k) if len(places) == len(positives) else k
    return sum(place <= reach for place in places) / reach


def mean(values):
    """The mean of those that are there."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else float("nan")


def revisited(lists, difficulty, ks=(1, 5, 10)):
    """One difficulty of (ranking, easy, hard, junk) a query: APs, and precisions by k."""
    split = {
        "easy": lambda easy, hard, junk: (easy, hard | junk),
        "medium": lambda easy, hard, junk: (easy | hard, junk),
        "hard": lambda easy, hard, junk: (hard, easy | junk),
    }[difficulty]
    asked = [(ranking, *split(easy, hard, junk)) for ranking, easy, hard, junk in lists]
    precisions = {k: [precision_at(*each, k) for each in asked] for k in ks}
    return [average_precision(*each) for each in asked], precisions
