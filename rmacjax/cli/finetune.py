"""`rmacjax finetune` (`python -m rmacjax.finetune`): train a network."""

import math
import os
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from rmacjax.cli.describing import PoolName
from rmacjax.cli.terminal import Flag, JsonFile, check_writable, prepare, say, tell, write_json

if TYPE_CHECKING:
    from rmacjax.descriptors import Params
    from rmacjax.finetune.loop import Finished, Run
    from rmacjax.finetune.sources import Drawn, Source
    from rmacjax.finetune.step import Plan
    from rmacjax.finetune.validation import Validator

UNTRAINED = "untrained:"
NEEDED = {"grain": "grain", "orbax.checkpoint": "orbax-checkpoint", "tensorboardX": "tensorboardX"}

LossChoice = Annotated[
    Literal["contrastive", "triplet", "multi-similarity", "info-nce", "smooth-ap"],
    arg(metavar="contrastive|triplet|multi-similarity|info-nce|smooth-ap"),
]
Number = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Count = Annotated[int, arg(metavar="N")]


def finetune(
    out: Annotated[Positional[str], arg(metavar="OUT")],
    *,
    data: Annotated[str, arg(metavar="SOURCE")],
    weights: Annotated[str, arg(metavar="NAME|FILE|untrained:ARCHITECTURE")] = "default",
    loss: LossChoice = "contrastive",
    margin: Number = None,
    temperature: Number = None,
    boxes: Annotated[Literal["none", "latent", "known"], arg(metavar="none|latent|known")] = "none",
    box_weight: Annotated[float, arg(metavar="X")] = 1.0,
    plain: Annotated[float, arg(metavar="X")] = 0.0,
    pool: Annotated[PoolName, arg(metavar="rgem|rmac|gem|mac|spoc|spoc_centre|crow")] = "rgem",
    describe_as: Annotated[
        PoolName | None,
        arg(metavar="rgem|rmac|gem|mac|spoc|spoc_centre|crow", help_behavior_hint=""),
    ] = None,
    exponent: Number = None,
    learn_exponent: Flag = False,
    whitening: Annotated[
        Literal["layer", "running", "none"] | None,
        arg(metavar="layer|running|none", help_behavior_hint=""),
    ] = None,
    levels: Count = 3,
    long_side: Annotated[int, arg(metavar="PIXELS")] = 362,
    steps: Count = 2000,
    rate: Annotated[float, arg(metavar="X")] = 1e-5,
    warmup: Count = 100,
    decay: Annotated[float, arg(metavar="X")] = 1e-4,
    clip: Annotated[float, arg(metavar="X")] = 1.0,
    average: Annotated[float, arg(metavar="X")] = 0.99,
    objects: Count = 16,
    images: Count = 2,
    negatives: Count = 0,
    chunk: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    recompute: Flag = False,
    bfloat16: Flag = False,
    stages: Annotated[
        str | None, arg(metavar="KIND:PIXELS:PAIRS:STEPS,...", help_behavior_hint="")
    ] = None,
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    seed: Count = 0,
    validate: Annotated[str | None, arg(metavar="DATASET|SHARE", help_behavior_hint="")] = None,
    validate_every: Count = 500,
    patience: Count = 0,
    save_every: Count = 200,
    dry_run: Flag = False,
    json: JsonFile = None,
) -> None:
    """Train a network on your photos, or on generated ones.

    The whole network learns, through the pooling and the whitening that describe photos in the end:
    photos of the same object shall have similar descriptors. OUT is the folder of the run: best and
    last network, records (CSV and TensorBoard), checkpoints. Run the same command again and it goes
    on where it stopped.

    What to learn from: a folder with a folder of photos for each object; a folder of photos, of
    which views are made; tfds:NAME[:SPLIT], a prepared data set of tensorflow-datasets with labels;
    a folder with retrieval-SfM's list of pairs and its images; or "scenes", generated images.

    For example:

        rmacjax finetune mine --data ~/Pictures/objects --validate 0.2
        rmacjax finetune mine --data ~/Pictures/objects --dry-run
        rmacjax finetune sfm --data ~/retrieval-SfM-120k --weights vgg16 --negatives 5 --chunk 4
        rmacjax finetune new --data scenes --weights untrained:alexnet --loss info-nce --rate 8e-4
        rmacjax index ~/Pictures holiday --weights mine/best.safetensors

    Args:
        out: The folder of the run.
        data: What to learn from.
        weights: What to start from: "default", another name, a weights file, or untrained:alexnet.
        loss: What is made small.
        margin: Of contrastive (0.7 unless given) and triplet (0.1).
        temperature: Of info-nce (0.05 unless given) and smooth-ap (0.01).
        boxes: Localization in the loss: by AML's own boxes, or by those that generated photos come
            with. The photos of a step are then compared box by box.
        box_weight: Weight of that part of the loss.
        plain: Weight of the same loss before whitening.
        pool: How a map becomes a vector while training. Regions by generalized means (rgem) let
            every cell learn.
        describe_as: How it becomes one afterwards: rmac after training with rgem takes the maxima
            that large exponents stand for. As in training unless given.
        exponent: Of generalized means: 10 for rgem unless given, the network's own for gem.
        learn_exponent: Learn the exponent with the rest.
        whitening: Train the weights' whitening as a layer; follow the moments of what is seen, for
            networks that have much to learn; or none. A layer where the weights have one, unless
            given.
        levels: Scales of the grid of regions.
        long_side: Photos are shrunk to this long side; views are square, of this side.
        steps: Steps of the whole run.
        rate: The highest learning rate.
        warmup: Steps in which the rate rises.
        decay: Weight decay of kernels.
        clip: Longer gradients are shortened to this length.
        average: The network that is kept is an average over steps (EMA) that each step keeps so
            much of; 0 for none.
        objects: Objects of a step, or photos that views are made of.
        images: Photos of each object in a step.
        negatives: Hard negatives of each object, searched for before every epoch.
        chunk: Photos that go through the network at once; the loss still sees all of a step.
        recompute: Compute more and keep less, for large photos.
        bfloat16: Compute in bfloat16; weights stay float32.
        stages: What generated images are drawn, one after the other: views or searches, side in
            pixels, pairs per step, steps.
        workers: Processes that load photos; as many as there are cores, at most 8, unless given.
        seed: Decides all that is drawn by chance.
        validate: Measure on this data set or folder with ground truth, or on a share of the objects
            (such as 0.1) that is then not trained on.
        validate_every: Steps between measurements.
        patience: End after so many measurements without a better one; 0 never does.
        save_every: Steps between checkpoints.
        dry_run: Say what it would take (sizes, memory, time), and do nothing.
        json: Write the report as JSON to this file, "-" for stdout.
    """
    missing = [package for module, package in NEEDED.items() if not _there(module)]
    if missing:
        raise ValueError(
            f"training needs {', '.join(missing)}: install it with pip install 'rmacjax[train]'"
        )
    if boxes == "known" and data != "scenes":
        raise ValueError(
            "only generated images come with known boxes (--data scenes): take --boxes latent"
        )
    if stages is not None and data != "scenes":
        raise ValueError("--stages say what generated images are drawn: leave it out")
    if chunk is not None and chunk < 1:
        raise ValueError(f"--chunk is at least 1, not {chunk}")
    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"{out!r} is a file, but a run needs a folder: name another")
    check_writable(json)
    prepare()
    from rmacjax.descriptors import Settings
    from rmacjax.finetune.loop import Run, fit
    from rmacjax.finetune.optimizer import Rates
    from rmacjax.finetune.state import Forward
    from rmacjax.finetune.step import Objective, Plan

    params = _start(weights, seed, pool, exponent)
    kind = whitening or ("none" if params.whitening is None else "layer")
    network = replace(
        params.network, compute_dtype="bfloat16" if bfloat16 else "float32", thresholds=()
    )
    plan = Plan(
        Forward(network, pool, learn_exponent, kind, recompute),
        Objective(loss, margin, temperature, plain, boxes, box_weight),
        Rates(rate, steps, warmup, decay=decay, clip=clip, average=average),
        chunk,
    )
    served = Settings(
        long_side=long_side, pool=describe_as or pool, levels=levels, whiten=kind != "none"
    )
    source = _source(data, stages, objects, long_side)
    source, validator = _validator(source, validate, served, seed)
    run = Run(
        seed=seed,
        settings=served,
        objects=objects,
        images=images,
        negatives=negatives,
        workers=min(8, os.cpu_count() or 1) if workers is None else workers,
        validate_every=validate_every if validator is not None else 0,
        patience=patience,
        save_every=save_every,
        measured_on=validate or "",
    )
    if dry_run:
        _tell_plan(params, source, plan, run, out, json)
        return
    from rich.console import Console

    done = fit(
        params, source, out, plan=plan, run=run, validate=validator, console=Console(stderr=True)
    )
    written = _write(out, done, weights, data, plan, served)
    if done.early:
        say(f"Ended after {patience} measurements without a better one")
    if json is not None:
        write_json(
            json,
            {"steps": done.step, "score": done.score, "early": done.early, "files": written},
        )
    if json != "-":
        for path in written:
            tell(f"Wrote {path}")


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _start(weights: str, seed: int, pool: str, exponent: float | None) -> "Params":
    """What training starts from, with the exponent that it starts with."""
    from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
    from rmacjax.descriptors import Params
    from rmacjax.weights import load

    if weights.startswith(UNTRAINED):
        architecture = weights.removeprefix(UNTRAINED)
        network = Network(architecture, False, TORCHVISION_CONVENTION, name=architecture)
        params = Params(network, initialize(architecture, seed))
    else:
        params = load(weights)
    if exponent is None:
        exponent = 10.0 if pool == "rgem" else params.network.gem_p
    if not (math.isfinite(exponent) and exponent >= 1):
        raise ValueError(f"--exponent is at least 1, not {exponent}")
    return params._replace(network=replace(params.network, gem_p=float(exponent)))


def _source(data: str, stages: str | None, objects: int, long_side: int) -> "Source | Drawn":
    from rmacjax.finetune.sources import GeneratedScenes, open_source, parse_stages

    if stages is not None:
        return GeneratedScenes(parse_stages(stages))
    return open_source(data, long_side=long_side, n=objects, size=long_side)


def _validator(
    source: "Source | Drawn", validate: str | None, settings: "object", seed: int
) -> "tuple[Source | Drawn, Validator | None]":
    """What to train on, and what measures the network."""
    from rmacjax.datasets import KNOWN, read_dataset, read_ground_truth
    from rmacjax.descriptors import Settings
    from rmacjax.finetune.sources import hold_out, is_labelled
    from rmacjax.finetune.validation import label_validator, validator

    if validate is None or not isinstance(settings, Settings):
        return source, None
    try:
        share = float(validate)
    except ValueError:
        named = validate in KNOWN and not os.path.exists(validate)
        truth = read_dataset(validate) if named else read_ground_truth(validate)
        return source, validator(truth, settings=settings)
    if not is_labelled(source):
        raise ValueError(
            f"{source.name} has no labels to hold a share of out: give --validate a data set"
        )
    trained, held_out = hold_out(source, share, seed)
    return trained, label_validator(held_out, settings=settings)


def _tell_plan(
    params: "Params",
    source: "Source | Drawn",
    plan: "Plan",
    run: "Run",
    out: str,
    json: str | None,
) -> None:
    from rmacjax.finetune.loop import first_batch
    from rmacjax.finetune.optimizer import optimizer
    from rmacjax.finetune.planning import abstract, plan_rows, plan_run
    from rmacjax.finetune.state import initial_state
    from rmacjax.finetune.step import everywhere, spread, train_step

    batch, per_epoch = first_batch(source, plan, run)
    state = everywhere(
        initial_state(params, plan.forward, optimizer(plan.rates), average=plan.rates.average > 0)
    )
    found = plan_run(
        train_step,
        abstract(state),
        abstract(spread(batch)),
        options={"plan": plan},
        trained=state.trained,
        images=sum(len(block.images) for block in batch.blocks),
        total_steps=plan.rates.steps,
        steps_per_epoch=per_epoch,
        chunk=plan.chunk,
        folder=out,
    )
    if json is not None:
        write_json(json, found._asdict() | {"fits": found.fits})
    if json != "-":
        rows = plan_rows(found)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            tell(f"{name:<{width}}  {value}")


def _write(
    out: str, done: "Finished", weights: str, data: str, plan: "Plan", settings: "object"
) -> list[str]:
    """Write the best and the last network."""
    from dataclasses import asdict

    from rmacjax.descriptors import Settings
    from rmacjax.weights import provenance, save

    scratch = weights.startswith(UNTRAINED)
    known = {} if scratch else provenance(weights)
    before = "random weights" if scratch else known["origin"]
    source = "generated scenes" if data == "scenes" else os.path.basename(os.path.normpath(data))
    kept = asdict(settings) if isinstance(settings, Settings) else {}
    stored: dict[str, object] = {name: kept[name] for name in ("pool", "levels") if name in kept}
    written = []
    for name, params in (("best", done.best), ("last", done.last)):
        if params is None:
            continue
        path = os.path.join(out, f"{name}.safetensors")
        network = replace(params.network, name=os.path.basename(os.path.normpath(out)))
        save(
            path,
            params._replace(network=network),
            origin=f"{before}; trained for {done.step} steps on {source}",
            licence=known.get("licence", "as its photos allow")
            if data != "scenes" or known
            else "Apache-2.0",
            made_by="rmacjax finetune",
            source_sha256=known.get("source_sha256", ""),
            whitening_origin=f"trained with the network on {source}" if params.whitening else "",
            settings=stored,
        )
        written.append(path)
    return written
