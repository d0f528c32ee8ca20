"""Find the object in your photos: R-MAC descriptors, AML localization and re-ranking in JAX.

The method is integral max-pooling of CNN activations (Tolias, Sicre and Jégou, ICLR 2016). Names
are loaded when they are first used, so that ``import rmacjax`` costs nothing and a command that
needs no JAX never imports it.
"""

import importlib

__version__ = "0.1.0"

# The public names, in the order in which a photo meets them, and the module that defines each.
_MODULE_OF = {
    "load": "weights",
    "Params": "descriptors",
    "Settings": "descriptors",
    "describe": "extraction",
    "activations": "extraction",
    "mac": "pooling",
    "spoc": "pooling",
    "spoc_centre": "weighting",
    "gem": "pooling",
    "crow": "weighting",
    "rmac": "pooling",
    "rgem": "pooling",
    "rmac_regions": "regions",
    "boxes_to_px": "regions",
    "region_maxima": "pooling",
    "region_generalized_means": "pooling",
    "integral_image": "integral",
    "box_generalized_mean": "integral",
    "Whitening": "whitening",
    "fit_pca_whitening": "whitening",
    "fit_pair_whitening": "whitening",
    "whiten": "whitening",
    "power_normalize": "whitening",
    "Localization": "localization",
    "aml": "localization",
    "localize": "localization",
    "aml_instances": "localization",
    "localize_instances": "localization",
    "average_expansion": "expansion",
    "alpha_expansion": "expansion",
    "augment": "augmentation",
    "NeighbourGraph": "diffusion",
    "neighbour_graph": "diffusion",
    "diffuse": "diffusion",
    "mean_average_precision": "evaluation",
    "Collection": "collection",
}

__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> object:
    """Import the module behind a public name when the name is first used (PEP 562)."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
