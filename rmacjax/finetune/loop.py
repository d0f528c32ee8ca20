"""The loop of a training: mine, plan, load, step, take down, validate, save; and go on from there.

A run is a folder. Whatever decides what is learned is compared with what the folder's checkpoints
were made with, so a run that was stopped, however it ended, goes on to the same result.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from typing import Any, NamedTuple, TypeGuard

import jax
import numpy as np
from jaxtyping import Int
from rich.console import Console

from rmacjax.backbones import minimum_size
from rmacjax.descriptors import Params, fingerprint
from rmacjax.finetune.batches import Batch
from rmacjax.finetune.checkpoints import Checkpoints
from rmacjax.finetune.describing import describe_images
from rmacjax.finetune.interruption import undisturbed
from rmacjax.finetune.loading import Batches, Loaded, Loader
from rmacjax.finetune.optimizer import optimizer, rate_at
from rmacjax.finetune.planning import abstract
from rmacjax.finetune.records import Records
from rmacjax.finetune.runs import (
    Diverged,
    Finished,
    Place,
    Run,
    Stopped,
    identity,
    images_of_a_step,
    plain,
)
from rmacjax.finetune.sources.generated import GeneratedScenes
from rmacjax.finetune.sources.plans import Planned, plan_epoch
from rmacjax.finetune.sources.protocols import Drawn, Source, is_labelled
from rmacjax.finetune.sources.views import PhotoViews
from rmacjax.finetune.state import TrainState, initial_state, to_params
from rmacjax.finetune.step import Plan, compiled_anew, everywhere, spread, train_step
from rmacjax.finetune.validation import EarlyStop, Validator
from rmacjax.mining import hard_negatives
from rmacjax.weights import measure_activation_scale

__all__ = ["Foreseen", "check_folder", "fit", "foresee", "trained_params"]

CHECKPOINTS = "checkpoints"
LOOKED_AT = 8
"""Steps of photos that are looked at before a run."""

NAMED = 8
"""So many of a bad batch's files are named."""


def fit(
    params: Params,
    source: Source | Drawn,
    folder: str | os.PathLike[str],
    *,
    plan: Plan,
    run: Run,
    validate: Validator | None = None,
    console: Console | None = None,
) -> Finished:
    """Train, or go on with a training.

    Args:
        params: what training starts from.
        source: from `rmacjax.finetune.sources.open_source`.
        folder: of the run: checkpoints, records.
        plan: what a step does.
        run: how the steps go through the source.
        validate: measures the network before the first step, every so many steps, and at the end.
        console: where people look; None for nobody.

    Returns:
        What was learned.

    Raises:
        Stopped: by Ctrl-C; it has what was learned until the last checkpoint.
        Diverged: the loss, its gradient or the weights are no numbers any more; it has what was
            learned until then.
        ValueError: the source cannot make such batches, or the folder holds another run.
        OSError: nothing can be read, or the folder cannot be written.
    """
    state = everywhere(
        initial_state(params, plan.forward, optimizer(plan.rates), average=plan.rates.average > 0)
    )
    place = Place(stop=EarlyStop(run.patience))
    _check_steps(source, plan, run)
    with (
        ExitStack() as stopping,
        _checkpoints(params, source, folder, plan, run) as checkpoints,
        _loader(source, plan, run) as loader,
    ):
        latest = checkpoints.latest()
        if latest is not None:
            state, extras = checkpoints.restore(state)
            place = Place.of(extras)
            place.stop = place.stop._replace(patience=run.patience)
        with Records(
            folder,
            total_steps=plan.rates.steps,
            resumed_at=latest,
            measured=not place.due,
            every=1,
            lines_every=10,
            console=console,
        ) as records:
            if latest is not None:
                records.say(f"Going on after step {latest}.")
            trainer = _Trainer(state, place, plan, run, checkpoints, loader, records, validate)
            like = abstract(state)
            ended: Stopped | Diverged | None = None
            try:
                trainer.train()
            except KeyboardInterrupt:
                stopping.enter_context(undisturbed(then_go_on=True))  # once is enough
                if checkpoints.latest() is None:
                    raise
                records.say("Stopping: what was learned until the last checkpoint is written.")
                ended = Stopped()
            except Diverged as error:
                if checkpoints.latest() is None:
                    raise
                ended = error
            except OSError:
                with suppress(OSError):  # the first one is told
                    if checkpoints.latest() is not None:
                        records.say("Checkpoints are kept: run it again to go on from the last.")
                raise
        with undisturbed(then_go_on=True):
            done = _finished(checkpoints, like, plan, run)
    if ended is not None:
        ended.done = done
        raise ended
    return done


def check_folder(
    params: Params,
    source: Source | Drawn,
    folder: str | os.PathLike[str],
    *,
    plan: Plan,
    run: Run,
) -> None:
    """See that a folder holds nothing, or this run; for the arguments see `fit`.

    Raises:
        ValueError: the folder holds another run.
        OSError: it cannot be read, or another training is at work in it.
    """
    if os.path.isdir(os.path.join(os.fsdecode(folder), CHECKPOINTS)):
        _checkpoints(params, source, folder, plan, run).close()


def _checkpoints(
    params: Params, source: Source | Drawn, folder: str | os.PathLike[str], plan: Plan, run: Run
) -> Checkpoints:
    """A run's checkpoints, which know what decides what is learned, but not how long one waits."""
    decides = replace(run, workers=0, patience=0, save_every=1)
    made_with = {
        "weights": fingerprint(params, run.settings),
        "source": identity(source),
        "plan": plain(asdict(plan)),
        "run": plain(asdict(decides)),
    }
    return Checkpoints(os.path.join(os.fsdecode(folder), CHECKPOINTS), made_with=made_with)


def _finished(checkpoints: Checkpoints, like: TrainState, plan: Plan, run: Run) -> Finished:
    """What a run has come to by its last checkpoint."""
    last, extras = checkpoints.restore(like)
    place, best = Place.of(extras), checkpoints.best()
    waited = place.stop._replace(patience=run.patience).stop
    found = None
    if best is not None:
        found = trained_params(checkpoints.restore(like, step=best)[0], plan)
    return Finished(
        trained_params(last, plan),
        found,
        int(last.step),
        best,
        None if best is None else checkpoints.score(best),
        place.start,
        waited and int(last.step) < plan.rates.steps,
    )


class Foreseen(NamedTuple):
    """What batches a run will have.

    Attributes:
        batch: the largest of those looked at.
        shapes: how many padded sizes they have, each of which is compiled for.
        steps_per_epoch: where there are epochs.
        unreadable: a sentence for each photo among them that cannot be used, and for each step that
            is passed over as too few are left.
    """

    batch: Batch
    shapes: int
    steps_per_epoch: int | None
    unreadable: tuple[str, ...]


def foresee(source: Source | Drawn, plan: Plan, run: Run) -> Foreseen:
    """Look at batches before a run.

    Of what is drawn in stages that is the first one of the stage with most pixels. Of photos it is
    the first eight steps', which are read; later ones may be larger where photos differ in shape.
    Hard negatives have not been mined, so others stand in their places.

    Raises:
        ValueError: the source cannot make such batches, or devices or chunks cannot share them.
        OSError: nothing can be read.
    """
    _check_steps(source, plan, run)
    with _loader(source, plan, replace(run, workers=0)) as loader:
        if not _is_planned(source, run):
            steps, first, shapes = plan.rates.steps, 0, 1
            if isinstance(source, GeneratedScenes):
                first, shapes = source.largest(steps), source.shapes(steps)
            loaded = next(loader.drawn(first + 1, first=first))
            return Foreseen(loaded.batch, shapes, None, loaded.unreadable)
        epoch = _epoch(source, run, 0, _unmined(source, run))
        looked_at = islice(loader.planned(epoch), min(LOOKED_AT, plan.rates.steps))
        loaded = next(looked_at)
        largest, sizes, unreadable = loaded.batch, set(), dict[str, None]()
        for batch, sentences, _ in chain([loaded], looked_at):
            sizes.add(tuple((part.images.shape, part.regions.shape) for part in batch.blocks))
            largest = max(largest, batch, key=lambda each: each.blocks[0].images.size)
            unreadable |= dict.fromkeys(sentences)
        return Foreseen(largest, len(sizes), len(epoch), tuple(unreadable))


def _check_steps(source: Source | Drawn, plan: Plan, run: Run) -> None:
    """Refuse, before anything is done, steps that cannot be made or shared evenly."""
    drawn: list[tuple[int, int]] = []
    if _is_planned(source, run):
        _epoch(source, run, 0, _unmined(source, run))
    if isinstance(source, GeneratedScenes):
        drawn = source.smallest(plan.rates.steps)
    elif isinstance(source, PhotoViews):
        drawn = [(source.size, source.size)]
    least = minimum_size(plan.forward.network)
    for height, width in drawn:
        if min(height, width) < least:
            raise ValueError(
                f"images of {height} x {width} pixels would be drawn, and the network needs "
                f"{least} along each side: draw larger ones"
            )
    devices = len(jax.devices())
    for images in sorted(images_of_a_step(source, run, plan.rates.steps)):
        if images % devices:
            raise ValueError(
                f"a step's {images} images cannot be shared evenly by {devices} devices: choose "
                "another number of objects, images, negatives or pairs"
            )
        if plan.chunk is not None and images % plan.chunk:
            raise ValueError(
                f"a step's {images} images do not make whole chunks of {plan.chunk}: choose a "
                "number that divides them"
            )


def _is_planned(source: Source | Drawn, run: Run) -> TypeGuard[Source | PhotoViews]:
    """Whether a run has epochs, in which it says which photos meet in a step."""
    return is_labelled(source) or (isinstance(source, PhotoViews) and run.negatives > 0)


def _epoch(
    source: Source | PhotoViews,
    run: Run,
    number: int,
    negatives: Int[np.ndarray, "m k"] | None,
) -> list[Planned]:
    """The steps of an epoch."""
    rng = np.random.default_rng([run.seed, number])
    if isinstance(source, PhotoViews):
        return source.plan(rng, negatives)
    return plan_epoch(source, rng, objects=run.objects, images=run.images, negatives=negatives)


def _unmined(source: Source | PhotoViews, run: Run) -> Int[np.ndarray, "m k"] | None:
    """Hard negatives before any were looked for: others will stand in their places."""
    return np.full((len(source), run.negatives), -1, np.int64) if run.negatives else None


def _loader(source: Source | Drawn, plan: Plan, run: Run) -> Loader:
    return Loader(
        source,
        plan.forward.network,
        seed=run.seed,
        pool=plan.forward.pool,
        levels=run.settings.levels,
        with_global=run.settings.with_global,
        workers=run.workers,
    )


def trained_params(state: TrainState, plan: Plan) -> Params:
    """What has been learned, its loudness measured, as `describe` and localization take it."""
    params = to_params(jax.device_put(state, jax.local_devices()[0]), plan.forward)
    # Of the network as it was: an exponent that is learned would have it compiled anew each time.
    network = replace(plan.forward.network, compute_dtype="float32")
    scale = measure_activation_scale(network, params.weights)
    return params._replace(network=replace(params.network, activation_scale=scale))


@dataclass
class _Trainer:
    """A run under way."""

    state: TrainState
    place: Place
    plan: Plan
    run: Run
    checkpoints: Checkpoints
    loader: Loader
    records: Records
    validate: Validator | None
    saved: int = -1
    told: set[str] = field(default_factory=set)

    def train(self) -> None:
        step = self.saved = int(self.state.step)
        total = self.plan.rates.steps
        try:
            if self.validate is not None and (step == 0 or self.place.due):
                self._measure(step, self.validate)
            while step < total and not self.place.stop.stop:
                batches = self._epoch()
                for loaded in batches:
                    step = self._step(step, loaded, batches)
                    if step >= total or self.place.stop.stop:
                        break
                else:
                    for sentence in batches.reports:
                        self._skip(sentence)
                    self.place = replace(self.place, epoch=self.place.epoch + 1, state=None)
        except (KeyboardInterrupt, Diverged, OSError) as error:
            if not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):
                told = (OSError,) if isinstance(error, OSError) else ()  # the first one is
                with undisturbed(then_go_on=True), suppress(*told):  # once is enough
                    self._save(int(self.state.step), self.place)
            raise
        if self.saved < step:
            self._save(step, self.place)

    def _epoch(self) -> Batches:
        """The batches of this epoch, from where it is."""
        source = self.loader.source
        if _is_planned(source, self.run):
            if self.place.state is None and self.run.negatives:
                self.place = replace(self.place, negatives=self._mine(source))
            epoch = _epoch(source, self.run, self.place.epoch, self.place.negatives)
            batches = self.loader.planned(epoch, first=self.place.epoch * len(epoch))
        else:
            batches = self.loader.drawn(self.plan.rates.steps)
        if self.place.state is not None:
            batches.restore(self.place.state)
        return batches

    def _step(self, step: int, loaded: Loaded, batches: Batches) -> int:
        for sentence in loaded.unreadable:
            self._skip(sentence)
        batch = loaded.batch
        every = self.run.validate_every
        last = step + 1 >= self.plan.rates.steps
        measured = self.validate is not None and every > 0 and ((step + 1) % every == 0 or last)
        with undisturbed():  # a step is taken or not, and known to be
            with compiled_anew():
                self.state, facts = train_step(self.state, spread(batch), plan=self.plan)
            if int(self.state.step) == step:
                raise Diverged(self._sorry(step, loaded, facts))
            step += 1
            self.place = replace(self.place, state=batches.state(), due=measured)
            images = sum(len(block.images) for block in batch.blocks)
            rate = rate_at(self.plan.rates, step - 1)
            self.records.step(step, {**facts, "rate": rate}, images=images)
        if measured and self.validate is not None:
            self._measure(step, self.validate)
        elif last or step % self.run.save_every == 0:
            self._save(step, self.place)
        return step

    def _measure(self, step: int, validate: Validator) -> None:
        """Measure what was learned until a step, and save it with its score."""
        found = validate(trained_params(self.state, self.plan))
        with undisturbed():  # it was measured, or is still to be
            self.records.validated(step, found.values)
            if step == 0:
                self.place = replace(self.place, start=found.score)
                for name, reason in found.skipped[:NAMED]:
                    said = reason if name in reason else f"{name} ({reason})"
                    self.records.say(f"Not used in validation: {said}")
            else:
                stop = self.place.stop.update(found.score)
                place = replace(self.place, stop=stop, due=False)
                if step == self.saved:  # without a score
                    extras = place.extras()
                    self.checkpoints.save_again(step, self.state, extras, score=found.score)
                self._save(step, place, found.score)
                self.place = place  # only now: until its score is saved it is to be measured

    def _save(self, step: int, place: Place, score: float | None = None) -> None:
        if step > self.saved:
            with undisturbed():  # what is saved is known to be
                self.checkpoints.save(step, self.state, place.extras(), score=score)
                if score is not None:  # what is not kept is to be measured again
                    self.checkpoints.wait()
                self.saved = step

    def _mine(self, source: Source | PhotoViews) -> Int[np.ndarray, "m k"]:
        """The hard negatives of every image, with the network as it is."""
        params = trained_params(self.state, self.plan)
        vectors, skipped = describe_images(
            params, source, list(range(len(source))), settings=self.run.settings
        )
        if not vectors:
            raise OSError(
                f"none of the {len(source)} images of {source.name} could be read "
                f"({next(iter(skipped.values()))})"
            )
        d = len(next(iter(vectors.values())))
        matrix = np.zeros((len(source), d), np.float32)
        known = source.clusters if is_labelled(source) else np.full(len(source), -1)
        clusters = np.full(len(source), -1, np.int64)
        # What nobody labelled may show anything, and is everyone's negative.
        alone = 1 + max(int(known.max()), 0)
        for index, vector in vectors.items():
            matrix[index] = vector
            clusters[index] = known[index] if known[index] >= 0 else alone + index
        queries = np.arange(len(source))
        found = hard_negatives(matrix, clusters, queries, count=self.run.negatives)
        what = "Skipped" if is_labelled(source) else "Without mined negatives"
        for index in sorted(skipped):
            self._skip(skipped[index], what)
        self.records.say(f"Mined negatives for epoch {self.place.epoch + 1}.")
        return found

    def _skip(self, sentence: str, what: str = "Skipped") -> None:
        """Say what was left out, and of what, once."""
        if (line := f"{what}: {sentence}") not in self.told:
            self.told.add(line)
            self.records.say(line)

    def _sorry(self, step: int, loaded: Loaded, facts: Mapping[str, Any]) -> str:
        files = ", ".join(loaded.files[:NAMED]) or "drawn for it"
        more = len(loaded.files) - NAMED
        rest = f" and {more} more" if more > 0 else ""
        loss, gradient = float(facts["loss"]), float(facts["gradient"])
        more_of_it = ""
        if np.isfinite(loss) and np.isfinite(gradient):
            more_of_it = ", but what it would make of the weights is no number"
        return (
            f"in step {step + 1} the loss is {loss} and its gradient {gradient}{more_of_it}, which "
            "nothing can be learned from; its images are "
            f"{files}{rest}. Try a lower rate, a longer warm-up, a higher temperature, or float32 "
            "instead of bfloat16, in another folder"
        )
