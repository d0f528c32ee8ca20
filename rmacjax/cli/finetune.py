"""`rmacjax finetune` (`python -m rmacjax.finetune`): train a network."""

import math
import os
from dataclasses import replace
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from rmacjax.cli.describing import PoolName
from rmacjax.cli.terminal import Flag, JsonFile, check_writable, prepare, say, tell, write_json
from rmacjax.cli.training import (
    Made,
    check_out,
    duration_of,
    lies_in_new_folder,
    refuse_idle_options,
    source_of,
    start_of,
    tell_plan,
    there,
    validator_of,
)

WITH_TEMPERATURE = ("info-nce", "smooth-ap")
MOST_SEED = 2**32 - 1
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
    box_weight: Number = None,
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
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    rate: Annotated[float, arg(metavar="X")] = 1e-5,
    warmup: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    decay: Annotated[float, arg(metavar="X")] = 1e-4,
    clip: Annotated[float, arg(metavar="X")] = 1.0,
    average: Annotated[float, arg(metavar="X")] = 0.99,
    centred: Flag = False,
    objects: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    images: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
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
    validate_every: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    patience: Count = 0,
    save_every: Count = 200,
    dry_run: Flag = False,
    json: JsonFile = None,
) -> None:
    """Train a network on your photos, or on generated ones.

    The whole network learns, through the pooling and the whitening that describe photos in the end:
    photos of the same object shall have similar descriptors. OUT is the folder of the run: best and
    last network, records (CSV and TensorBoard), checkpoints. Ctrl-C writes the networks of the last
    checkpoint; run the same command again and it goes on where it stopped.

    What to learn from: a folder with a folder of photos for each object; a folder of photos, of
    which views are made; tfds:NAME[:SPLIT], a prepared data set of tensorflow-datasets with labels;
    a folder with retrieval-SfM's list of pairs and its images; or "scenes", generated images.
    views:FOLDER makes views whatever the folder holds.

    For example:

        rmacjax finetune mine --data ~/Pictures/objects --validate 0.2
        rmacjax finetune mine --data ~/Pictures/objects --dry-run
        rmacjax finetune sfm --data ~/retrieval-SfM-120k --weights vgg16 --negatives 5 --chunk 4
        rmacjax finetune new --data scenes --weights untrained:alexnet --centred --rate 4e-4
        rmacjax index ~/Pictures holiday --weights mine/best.safetensors

    Args:
        out: The folder of the run.
        data: What to learn from.
        weights: What to start from: "default", "vgg16-scenes", another name, a weights file, or
            untrained:alexnet.
        loss: What is made small.
        margin: Of contrastive (0.7 unless given) and triplet (0.1).
        temperature: Of info-nce (0.05 unless given) and smooth-ap (0.01).
        boxes: Localization in the loss: by AML's own boxes, or by those that generated photos come
            with. The photos of a step are then compared box by box.
        box_weight: Weight of that part of the loss, 1 unless given.
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
        steps: Steps of the whole run, which the rate falls over: with another number it is another
            run, in another folder. Those of all stages where images are generated, else 2000,
            unless given.
        rate: The highest learning rate.
        warmup: Steps in which the rate rises: a tenth of all and at most 100 unless given.
        decay: Weight decay of kernels.
        clip: Longer gradients are shortened to this length.
        average: The network that is kept is an average over steps (EMA) that each step keeps so
            much of; 0 for none.
        centred: Take steps as if what convolutions see had mean zero, which keeps channels from
            falling silent: for networks that start from nothing.
        objects: Objects of a step, or photos that views are made of; 16 unless given.
        images: Photos of each object in a step; 2 unless given.
        negatives: Hard negatives of each object, searched for before every epoch; where views are
            made, of each photo: good only where no two photos show the same.
        chunk: Photos that go through the network at once; the loss still sees all of a step.
        recompute: Compute more and keep less, for large photos.
        bfloat16: Compute in bfloat16; weights stay float32.
        stages: What generated images are drawn, one after the other: views or searches, side in
            pixels, pairs per step, steps.
        workers: Processes that load photos; as many as there are cores, at most 16, unless given.
        seed: Decides all that is drawn by chance.
        validate: Measure on this data set or folder with ground truth, on "scenes" (generated), or
            on a share of the objects (such as 0.1) that is then not trained on.
        validate_every: Steps between measurements, 500 unless given.
        patience: End after so many measurements without a better one; 0 never does.
        save_every: Steps between checkpoints.
        dry_run: Say what it would take (sizes, memory, time), and do nothing.
        json: Write the report as JSON to this file, "-" for stdout.
    """
    missing = [package for module, package in NEEDED.items() if not there(module)]
    if missing:
        raise ValueError(
            f"training needs {', '.join(missing)}: install it with pip install 'rmacjax[train]'"
        )
    scenes = data == "scenes" and not os.path.isdir(data)
    if boxes == "known" and not scenes:
        raise ValueError(
            "only generated images come with known boxes (--data scenes): take --boxes latent"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"--chunk is at least 1, not {chunk}")
    if validate_every is not None and validate_every < 1:
        raise ValueError(f"--validate-every is at least 1, not {validate_every}")
    if save_every < 1:
        raise ValueError(f"--save-every is at least 1, not {save_every}")
    if box_weight is not None and not 0 <= box_weight < math.inf:
        raise ValueError(f"--box-weight is 0 or more, not {box_weight}")
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"--seed lies in 0 to {MOST_SEED}, but is {seed}")
    powers = pool in ("gem", "rgem")
    refuse_idle_options(
        [
            ("--margin", margin, loss in ("contrastive", "triplet"), f"--loss {loss} has none"),
            ("--temperature", temperature, loss in WITH_TEMPERATURE, f"--loss {loss} has none"),
            ("--box-weight", box_weight, boxes != "none", "it is --boxes that has a weight"),
            ("--learn-exponent", learn_exponent or None, powers, f"--pool {pool} has none"),
            ("--exponent", exponent, powers, f"--pool {pool} has none"),
            ("--stages", stages, scenes, "it says what generated images are drawn"),
            ("--objects", objects, not scenes, "--stages says how many pairs are drawn"),
            ("--validate-every", validate_every, validate is not None, "there is no --validate"),
            ("--patience", patience or None, validate is not None, "there is no --validate"),
        ]
    )
    check_out(out)
    if dry_run or not lies_in_new_folder(out, json):
        check_writable(json)
    prepare("rmacjax.finetune.loop")
    from rmacjax.backbones import minimum_size
    from rmacjax.descriptors import Settings
    from rmacjax.finetune.interruption import undisturbed
    from rmacjax.finetune.loop import fit
    from rmacjax.finetune.optimizer import Rates
    from rmacjax.finetune.runs import Diverged, Run, Stopped
    from rmacjax.finetune.sources import is_labelled
    from rmacjax.finetune.state import Forward
    from rmacjax.finetune.step import Objective, Plan

    objects = 16 if objects is None else objects
    source = source_of(data, stages, objects, long_side)
    steps, warmup = duration_of(source, steps, warmup, boxes)
    params = start_of(weights, seed, pool, exponent)
    if not scenes and long_side < (least := minimum_size(params.network)):
        raise ValueError(f"--long-side {long_side} is too short: {weights} needs {least} pixels")
    kind = whitening or ("none" if params.whitening is None else "layer")
    network = replace(
        params.network, compute_dtype="bfloat16" if bfloat16 else "float32", thresholds=()
    )
    plan = Plan(
        Forward(network, pool, learn_exponent, kind, recompute),
        Objective(
            loss, margin, temperature, plain, boxes, 1.0 if box_weight is None else box_weight
        ),
        Rates(
            rate,
            steps,
            warmup,
            decay=decay,
            clip=clip,
            average=average,
            centred=centred,
        ),
        chunk,
    )
    served = Settings(
        long_side=long_side, pool=describe_as or pool, levels=levels, whiten=kind != "none"
    )
    every = 500 if validate_every is None else validate_every
    for sentence in getattr(source, "problems", ()):
        say(f"Skipped: {sentence}")
    in_pairs = not is_labelled(source) or source.pairs is not None
    refuse_idle_options(
        [
            ("--images", images, not in_pairs, "what is learned from comes in pairs"),
            ("--negatives", negatives or None, not scenes, "images are made, not found"),
        ]
    )
    source, validator = validator_of(source, validate, served, seed)
    measured_on = validate or ""
    if os.path.exists(measured_on):  # however it is spelled
        measured_on = os.path.abspath(measured_on)
    run = Run(
        seed=seed,
        settings=served,
        objects=objects,
        images=2 if images is None else images,
        negatives=negatives,
        workers=min(16, os.cpu_count() or 1) if workers is None else workers,
        validate_every=0 if validator is None else every,
        patience=patience,
        save_every=save_every,
        measured_on=measured_on,
    )
    if dry_run:
        tell_plan(params, source, plan, run, out, json)
        return
    from rich.console import Console

    made = Made(out, weights, "" if scenes else data, served)
    try:
        done = fit(
            params,
            source,
            out,
            plan=plan,
            run=run,
            validate=validator,
            console=Console(stderr=True),
        )
    except Diverged as error:
        for path in () if error.done is None else made.write_all(error.done):
            say(f"Wrote {path}: what was learned before")
        raise
    except Stopped as stopped:
        with undisturbed(then_go_on=True):
            for path in made.write_all(stopped.done):
                say(f"Wrote {path}: what was learned so far")
        raise
    written = made.write_all(done)
    if done.early:
        say(f"Ended after {patience} measurements without a better one")
    if done.score is not None and done.start is not None and done.score <= done.start:
        say(
            f"No measurement ({done.score:.3f} at best) was above that of the start "
            f"({done.start:.3f}): {weights} serves better than what was learned"
        )
    if json is not None:
        write_json(
            json,
            {"steps": done.step, "score": done.score, "early": done.early, "files": written},
        )
    if json != "-":
        for path in written:
            tell(f"Wrote {path}")
