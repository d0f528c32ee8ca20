"""How well boxes lie when localization is asked alone: paintings in the museum's photos of walls.

    python benchmarks/boxes.py MUSEUM                    # default
    python benchmarks/boxes.py MUSEUM --weights squeezenet1_1_torchvision_fp16.npz

A painting shrunk to 320 pixels is the query, its wall at 512 the photo; maps are as the network
gives them. No descriptor and no quantised map takes part, so it is the network that is measured.
"aml" is AML with exact maxima on the published grid, as re-ranking does it.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rmacjax
from rmacjax.backbones import stride
from rmacjax.datasets import read_museum_reversed
from rmacjax.pooling import mac
from rmacjax.preprocessing import load_image
from rmacjax.regions import box_iou, boxes_to_px


def main(
    museum: Path,
    /,
    *,
    weights: str = "default",
    query_side: int = 320,
    photo_side: int = 512,
    within: float = 1.3,
) -> None:
    """Localize every painting in its photos and print one JSON document.

    Args:
        museum: folder of the museum's photos.
        weights: name or file of the network.
        query_side: longest side of a painting in pixels.
        photo_side: longest side of a photo in pixels.
        within: greatest factor between the shapes of a box and of the painting, in exact search.
    """
    params = rmacjax.load(weights)
    exact = jax.jit(lambda *given: rmacjax.localize(*given[:3], within, size=given[3]).box)
    on_grid = jax.jit(lambda *given: rmacjax.aml(*given[:3], alpha=None, size=given[3]).box)
    most = photo_side // stride(params.network) + 1
    overlaps: dict[str, list[float]] = {"exact": [], "aml": [], "whole photo": []}
    truth = read_museum_reversed(museum)
    for query in truth.queries:
        painting = load_image(query.path, query_side).pixels
        wanted = mac(rmacjax.activations(params, [painting])[0])
        ratio = jnp.float32(painting.shape[0] / painting.shape[1])
        for at, box in query.boxes.items():
            photo = load_image(truth.paths[at], photo_side)
            map_ = np.asarray(rmacjax.activations(params, [photo.pixels])[0])
            high, wide = map_.shape[:2]
            full = (photo.height_px, photo.width_px)
            padded = np.pad(map_, [(0, most - high), (0, most - wide), (0, 0)])
            given = (padded, wanted, ratio, np.array([high, wide], np.int32))
            found = {
                "exact": boxes_to_px(exact(*given), (high, wide), full),
                "aml": boxes_to_px(on_grid(*given), (high, wide), full),
                "whole photo": np.array([0, 0, *full]),
            }
            for name, each in found.items():
                overlaps[name].append(float(box_iou(np.asarray(each), np.asarray(box))))
    report: dict[str, object] = {"weights": weights, "n": len(overlaps["exact"])}
    for name, values in overlaps.items():
        above = float(np.mean(np.array(values) > 0.5))
        report[name] = {"mean_overlap": float(np.mean(values)), "above_one_half": above}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
