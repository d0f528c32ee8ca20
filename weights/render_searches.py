"""Render photos with known answers, to learn from them which scores count as found.

    python weights/render_searches.py searches
    rmacjax evaluate searches --long-side 512 --save-thresholds weights/default.safetensors

Nothing is loaded: the photos are those of `rmacjax.scenes`, of a seed that no training used.
"""

from pathlib import Path

import tyro

from rmacjax.demo import write_scenes
from rmacjax.scenes import render_collection

SEED = 20_161_102


def main(
    out: tyro.conf.Positional[Path], *, objects: int = 300, views: int = 2, distractors: int = 200
) -> None:
    """Write photos and their ground truth.

    Args:
        out: the folder.
        objects: things to search for; each asks once where it is and once where it is not.
        views: photos of each, the first of which is the query.
        distractors: photos of other things.
    """
    scenes = render_collection(SEED, objects, views, distractors)
    truth = write_scenes(scenes, out, "generated searches")
    print(f"{len(truth.paths)} photos, {len(truth.queries)} queries in {out}")


if __name__ == "__main__":
    tyro.cli(main)
