"""Generated photos with known truth, for training, tests and the demo.

Everything here is made from random numbers: nothing is loaded, so whoever has the seed has the
images. The ingredients are those that a photo's statistics ask for: *dead leaves* (shapes of all
sizes that cover each other), textures with power-law spectra, repeated structure as on facades,
lettering, and a camera (perspective, light, shadow, blur, noise, JPEG).

`render_collection` makes photos of things in places, to search in, and `search_set` harder ones,
as a benchmark; `training_batch` makes pairs of views of abstract scenes and `search_batch` outlined
parts of such scenes with photos that show them, to learn from.

References:
    Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001 (dead leaves).
    Baradad et al., "Learning to see by looking at noise", NeurIPS 2021 (training on such images).
"""

from rmacjax.scenes.camera import blur, homography, photograph, sample
from rmacjax.scenes.leaves import render_scene
from rmacjax.scenes.mishaps import spoil
from rmacjax.scenes.painting import mask_box, place
from rmacjax.scenes.pairs import training_batch, training_pair
from rmacjax.scenes.photos import SceneCollection, render_collection, search_set
from rmacjax.scenes.places import render_place
from rmacjax.scenes.searches import SearchBatch, search_batch
from rmacjax.scenes.textures import power_noise, texture_bank
from rmacjax.scenes.things import render_object

__all__ = [
    "SceneCollection",
    "SearchBatch",
    "blur",
    "homography",
    "mask_box",
    "photograph",
    "place",
    "power_noise",
    "render_collection",
    "render_object",
    "render_place",
    "render_scene",
    "sample",
    "search_batch",
    "search_set",
    "spoil",
    "texture_bank",
    "training_batch",
    "training_pair",
]
