"""What `rmacjax finetune` makes of its options, and what it writes in the end."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from rmacjax.cli.terminal import say, tell, write_json

if TYPE_CHECKING:
    from rmacjax.descriptors import Params, Settings
    from rmacjax.finetune.runs import Finished, Run
    from rmacjax.finetune.sources import Drawn, Source
    from rmacjax.finetune.step import Plan
    from rmacjax.finetune.validation import Validator

STEPS = 2000
UNTRAINED = "untrained:"
NETWORKS = ("best", "last")


def refuse_idle_options(options: Sequence[tuple[str, object, bool, str]]) -> None:
    """Refuse options that change nothing: each its name, value (None: not given), use, and why."""
    for name, value, used, why in options:
        if value is not None and not used:
            raise ValueError(f"{name} changes nothing here ({why}): leave it out")


def check_out(out: str) -> None:
    """Refuse a folder that a run cannot have, or in which it would replace another's networks."""
    if not out:
        raise ValueError("OUT is empty: name the folder of the run")
    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"{out!r} is a file, but a run needs a folder: name another")
    places = [os.path.join(out, f"{name}.safetensors") for name in NETWORKS]
    held = [path for path in places if os.path.exists(path)]
    checkpoints = os.path.join(out, "checkpoints")
    steps = os.listdir(checkpoints) if os.path.isdir(checkpoints) else ()
    if held and not any(step.partition(".")[0].isdecimal() for step in steps):
        raise ValueError(
            f"{held[0]!r} would be replaced, and there are no checkpoints of its run to go on "
            "from: name another folder"
        )


def lies_in_new_folder(out: str, file: str | None) -> bool:
    """Whether a file lies in a run's folder that is still to be made."""
    if file is None or file == "-" or os.path.exists(out):
        return False
    return os.path.dirname(os.path.abspath(file)) == os.path.abspath(out)


def there(module: str) -> bool:
    """Whether a module is installed."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def start_of(weights: str, seed: int, pool: str, exponent: float | None) -> "Params":
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


def source_of(data: str, stages: str | None, objects: int, long_side: int) -> "Source | Drawn":
    """What to learn from."""
    from rmacjax.finetune.sources import GeneratedScenes, open_source, parse_stages

    if stages is not None:
        return GeneratedScenes(parse_stages(stages))
    return open_source(data, long_side=long_side, n=objects, size=long_side)


def duration_of(
    source: "Source | Drawn", steps: int | None, warmup: int | None, boxes: str
) -> tuple[int, int]:
    """How many steps a run has, and in how many of them the rate rises."""
    from rmacjax.finetune.sources import GeneratedScenes

    if steps is not None and steps < 1:
        raise ValueError(f"--steps is at least 1, not {steps}")
    if isinstance(source, GeneratedScenes):
        steps = sum(stage.steps for stage in source.stages) if steps is None else steps
        if boxes == "known" and all(s.kind != "searches" for _, s in source.reached(steps)):
            raise ValueError(
                f"--boxes known changes nothing in a run of {steps} steps that has no searches: "
                "give --stages with some, or more --steps"
            )
    steps = STEPS if steps is None else steps
    warmup = min(100, steps // 10) if warmup is None else warmup
    if warmup and warmup >= steps:
        raise ValueError(f"with --warmup {warmup} the rate would still rise after {steps} steps")
    return steps, warmup


def validator_of(
    source: "Source | Drawn", validate: str | None, settings: "Settings", seed: int
) -> "tuple[Source | Drawn, Validator | None]":
    """What to train on, and what measures the network."""
    from rmacjax.cli.generated import is_generated, rendered_truth
    from rmacjax.datasets import KNOWN, read_dataset, read_ground_truth
    from rmacjax.finetune.sources import hold_out, is_labelled
    from rmacjax.finetune.validation import label_validator, validator

    if validate is None:
        return source, None
    try:
        share = float(validate)
    except ValueError:
        if is_generated(validate):
            truth = rendered_truth(validate)
        elif validate in KNOWN and not os.path.exists(validate):
            truth = read_dataset(validate)
        else:
            truth = read_ground_truth(validate)
        return source, validator(truth, settings=settings)
    if not is_labelled(source):
        raise ValueError(
            f"{source.name} has no labels to hold a share of out: give --validate a data set"
        )
    trained, held_out = hold_out(source, share, seed)
    return trained, label_validator(held_out, settings=settings)


def tell_plan(
    params: "Params",
    source: "Source | Drawn",
    plan: "Plan",
    run: "Run",
    out: str,
    json: str | None,
) -> None:
    """Say what a run would take."""
    from rmacjax.finetune.loop import check_folder, foresee
    from rmacjax.finetune.optimizer import optimizer
    from rmacjax.finetune.planning import abstract, plan_rows, plan_run
    from rmacjax.finetune.state import initial_state
    from rmacjax.finetune.step import compiled_anew, everywhere, spread, train_step

    check_folder(params, source, out, plan=plan, run=run)
    batch, shapes, per_epoch, unreadable = foresee(source, plan, run)
    for sentence in unreadable:
        say(f"Skipped: {sentence}")
    state = everywhere(
        initial_state(params, plan.forward, optimizer(plan.rates), average=plan.rates.average > 0)
    )
    with compiled_anew():
        found = plan_run(
            train_step,
            abstract(state),
            abstract(spread(batch)),
            options={"plan": plan},
            trained=state.trained,
            images=sum(len(block.images) for block in batch.blocks),
            total_steps=plan.rates.steps,
            steps_per_epoch=per_epoch,
            shapes=shapes,
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


class Made(NamedTuple):
    """What is told of the networks of a run.

    Attributes:
        out: the folder of the run.
        weights: what it started from.
        data: what was learned from; "" for generated images.
        settings: how photos are described with it.
    """

    out: str
    weights: str
    data: str
    settings: "Settings"

    def write_all(self, done: "Finished") -> list[str]:
        """Write the best network, where networks were measured, and the last; returns the files."""
        from rmacjax.finetune.interruption import undisturbed

        networks = ((done.best, done.best_step), (done.last, done.step))
        with undisturbed():
            return [
                self.write(name, learned, step)
                for name, (learned, step) in zip(NETWORKS, networks, strict=True)
                if learned is not None and step is not None
            ]

    def write(self, name: str, params: "Params", steps: int) -> str:
        """Write a network after so many steps; returns its file."""
        from rmacjax.weights import provenance, save

        known = {} if self.weights.startswith(UNTRAINED) else provenance(self.weights)
        before = known.get("origin", "random weights")
        source = os.path.basename(os.path.abspath(self.data)) if self.data else "generated scenes"
        licence = known.get("licence", "Apache-2.0")
        if self.data:
            began = f"{licence} for what it began with, then " if known else ""
            licence = f"{began}as its photos allow"
        path = os.path.join(self.out, f"{name}.safetensors")
        network = replace(params.network, name=os.path.basename(os.path.abspath(self.out)))
        save(
            path,
            params._replace(network=network),
            origin=f"{before}; trained for {steps} steps on {source}",
            licence=licence,
            made_by="rmacjax finetune",
            source_sha256=known.get("source_sha256", ""),
            whitening_origin=f"trained with the network on {source}" if params.whitening else "",
            settings={"pool": self.settings.pool, "levels": self.settings.levels},
        )
        return path
