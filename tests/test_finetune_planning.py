"""Planning: beside sums done by hand, and steps whose time and memory are known."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize, map_size
from rmacjax.descriptors import Params, describe_batch, region_grid
from rmacjax.finetune.batches import Batch, Block
from rmacjax.finetune.optimizer import Rates, optimizer
from rmacjax.finetune.planning import RunPlan, abstract, plan_rows, plan_run
from rmacjax.finetune.state import Forward, initial_state
from rmacjax.finetune.step import Objective, Plan, train_step

NETWORK = Network("alexnet", last_pool=False, convention=TORCHVISION_CONVENTION)
RULE = optax.sgd(1e-2, momentum=0.9)


class State(NamedTuple):
    weights: dict[str, jax.Array]
    optimizer: optax.OptState
    step: jax.Array


def first_state() -> State:
    weights = initialize("alexnet", 0)
    return State(weights, RULE.init(weights), jnp.int32(0))


def batch_of(images: int, side: int) -> dict[str, np.ndarray]:
    grid = region_grid(*map_size(NETWORK, side, side))
    return {
        "images": np.zeros((images, side, side, 3), np.uint8),
        "sizes": np.full((images, 2), side, np.int32),
        "regions": np.stack([grid] * images),
    }


def _train(state: State, batch: dict[str, jax.Array], *, scale: float) -> tuple[State, jax.Array]:
    def loss(weights: dict[str, jax.Array]) -> jax.Array:
        params = Params(NETWORK, weights, None)
        described = describe_batch(params, batch["images"], batch["sizes"], batch["regions"])
        return scale * jnp.sum(described.descriptors @ described.descriptors.T)

    value, gradient = jax.value_and_grad(loss)(state.weights)
    moved, optimizer = RULE.update(gradient, state.optimizer)
    return State(optax.apply_updates(state.weights, moved), optimizer, state.step + 1), value


train = jax.jit(_train, static_argnames="scale", donate_argnums=0)


def test_a_real_network_is_planned_without_an_array(tmp_path):
    # Shapes alone: nothing is computed to get them either.
    state = jax.eval_shape(first_state)
    small, large = (abstract(batch_of(images, 96)) for images in (4, 16))
    facts = {"options": {"scale": 0.5}, "trained": state.weights, "total_steps": 1200}
    plan = plan_run(
        train,
        state,
        small,
        images=4,
        steps_per_epoch=300,
        shapes=3,
        chunk=2,
        checkpoints=3,
        folder=tmp_path / "not" / "there",
        **facts,
    )
    counted = sum(weight.size for weight in initialize("alexnet", 0).values())
    assert plan.parameters == counted
    assert dict(plan.arrays) == {
        "images": "4 x 96 x 96 x 3 uint8",
        "sizes": "4 x 2 int32",
        "regions": "4 x {} x 4 int32".format(small["regions"].shape[1]),
    }
    # Weights and momentum and a counter, each four bytes; the gradient must fit beside them.
    assert plan.checkpoint_bytes == 2 * 4 * counted + 4
    assert plan.disk_bytes == 3 * plan.checkpoint_bytes < plan.free_bytes
    assert 3 * 4 * counted < plan.memory_bytes < plan.device_bytes
    assert plan.devices == 1 and plan.fits
    assert 0 < plan.step_seconds < 60
    assert plan.run_seconds == 3 * plan.compile_seconds + 1200 * plan.step_seconds
    wider = plan_run(train, state, large, images=16, timed=False, **facts)
    activations = 64 * 23 * 23 * 4  # of the first layer alone, per image
    assert wider.memory_bytes > plan.memory_bytes + 12 * activations
    assert wider.step_seconds is None and wider.run_seconds is None and wider.free_bytes is None
    rows = dict(plan_rows(plan))
    assert rows["parameters"] == f"{counted:,}"
    assert rows["images per step"] == "4, 2 at once" and rows["steps"] == "1,200, 300 per epoch"
    assert rows["images"] == "4 x 96 x 96 x 3 uint8"
    assert dict(plan_rows(wider))["one step"] == "not measured"


def test_vgg16_learns_from_large_photos_in_16_gb():
    """Chunks of 4 of 16 photos of 1024 x 768 pixels, by the compiler's account for this device."""
    network = Network("vgg16", False, TORCHVISION_CONVENTION, gem_p=10.0)
    step = Plan(
        Forward(network, "rgem", whitening="none"),
        Objective("contrastive"),
        Rates(rate=1e-5, steps=10, warmup=2),
        chunk=4,
    )

    def first_state():
        params = Params(network, initialize("vgg16", 0))
        return initial_state(params, step.forward, optimizer(step.rates), average=True)

    regions = region_grid(*map_size(network, 768, 1024))
    photos = Block(
        np.zeros((16, 768, 1024, 3), np.uint8),
        np.full((16, 2), (768, 1024), np.int32),
        np.stack([regions] * 16),
    )
    labels = np.arange(16, dtype=np.int32) // 2
    state = jax.eval_shape(first_state)
    batch = abstract(Batch((photos,), labels, labels))
    facts = {"trained": state.trained, "images": 16, "total_steps": 10, "timed": False}
    plan = plan_run(train_step, state, batch, options={"plan": step}, chunk=4, **facts)
    # Photos, weights, gradient, Adam's two moments and the average are there in any case.
    assert photos.images.nbytes + 5 * 4 * plan.parameters < plan.memory_bytes < 13e9
    assert plan.parameters == 14_714_688 + 1  # and the exponent


def test_memory_is_what_goes_in_comes_out_and_lies_between():
    numbers = jax.ShapeDtypeStruct((1000, 500), jnp.float32)
    facts = {"trained": numbers, "images": 1, "total_steps": 1, "timed": False}
    two = 2 * 1000 * 500 * 4
    plain = jax.jit(lambda state, batch: state + batch)
    donated = jax.jit(lambda state, batch: state + batch, donate_argnums=0)
    assert plan_run(plain, numbers, numbers, **facts).memory_bytes == 3 * two // 2
    assert plan_run(donated, numbers, numbers, **facts).memory_bytes == two
    between = jax.jit(lambda state, batch: jnp.sum(jnp.sort(state @ batch.T)))
    assert plan_run(between, numbers, numbers, **facts).memory_bytes >= two + 1000 * 1000 * 4


def test_a_step_shared_by_devices_is_planned_per_device():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, everywhere = (jax.NamedSharding(mesh, spec) for spec in (jax.P("data"), jax.P()))
    weights = jax.device_put(np.zeros((300, 300), np.float32), everywhere)
    rows = jax.device_put(np.zeros((4000, 300), np.float32), split)
    step = jax.jit(lambda state, batch: state - jnp.tanh(batch @ state).T @ batch)
    facts = {"images": 4000, "total_steps": 10}
    shared = plan_run(step, abstract(weights), abstract(rows), trained=weights, **facts)
    one = jax.ShapeDtypeStruct(rows.shape, rows.dtype)
    alone = plan_run(step, jax.ShapeDtypeStruct((300, 300), rows.dtype), one, trained=one, **facts)
    assert (shared.devices, alone.devices) == (2, 1)
    assert shared.memory_bytes < alone.memory_bytes - 2000 * 300 * 4
    assert shared.step_seconds > 0
    assert shared.device_bytes == alone.device_bytes // 2  # these devices share one memory
    assert "on 2 devices" in dict(plan_rows(shared))["images per step"]
    assert " per device" in dict(plan_rows(shared))["memory"]


def test_time_is_that_of_one_step_after_the_first():
    calls = []

    def wait(value: np.ndarray) -> np.ndarray:
        calls.append(float(value))
        time.sleep(1.0 if len(calls) == 1 else 0.2)
        return value

    def slow(state: jax.Array, batch: jax.Array) -> jax.Array:
        return jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), state) + batch

    number = jax.ShapeDtypeStruct((), jnp.float32)
    facts = {"trained": number, "images": 8, "total_steps": 100}
    plan = plan_run(jax.jit(slow, donate_argnums=0), number, number, timed=False, **facts)
    assert calls == [] and plan.step_seconds is None
    plan = plan_run(jax.jit(slow, donate_argnums=0), number, number, **facts)
    assert calls == [0.0, 0.0]
    assert 0.2 <= plan.step_seconds < 0.7
    assert plan.run_seconds == pytest.approx(plan.compile_seconds + 100 * plan.step_seconds)


PLAN = RunPlan(
    parameters=12_345_678,
    arrays=(("blocks.0.images", "64 x 512 x 512 x 3 uint8"),),
    images=64,
    chunk=8,
    devices=4,
    memory_bytes=20_000_000_000,
    device_bytes=16_000_000_000,
    step_seconds=0.5,
    compile_seconds=40.0,
    shapes=3,
    total_steps=10_000,
    steps_per_epoch=None,
    checkpoint_bytes=1_500_000_000,
    checkpoints=4,
    free_bytes=5_000_000_000,
)


def test_people_read_what_is_too_much_and_what_to_do():
    rows = dict(plan_rows(PLAN))
    assert not PLAN.fits
    assert rows == {
        "parameters": "12,345,678",
        "blocks.0.images": "64 x 512 x 512 x 3 uint8",
        "images per step": "64, 8 at once on 4 devices",
        "memory": "20.0 GB per device, of 16.0 GB: too much; take smaller chunks or images, or "
        "fewer of them",
        "compiling": "40.0 s, for each of 3 sizes of batches seen",
        "one step": "500 ms (128.0 images per second)",
        "steps": "10,000",
        "all steps": "1 h 25 min, beside loading, validating and saving",
        "checkpoints": "up to 1.5 GB each, 6.0 GB for 4, of 5.0 GB free: too much; "
        "name a folder on another disk",
    }
    assert PLAN._replace(device_bytes=None, free_bytes=None).fits
    assert PLAN._replace(memory_bytes=None, free_bytes=None).fits
    assert not PLAN._replace(memory_bytes=1).fits
    assert (
        dict(plan_rows(PLAN._replace(memory_bytes=None)))["memory"] == "the compiler does not say"
    )


def test_what_does_not_fit_is_not_run():
    numbers = jax.ShapeDtypeStruct((1 << 40,), jnp.float32)
    double = jax.jit(lambda state, batch: state * batch)
    plan = plan_run(
        double,
        numbers,
        jax.ShapeDtypeStruct((), jnp.float32),
        trained=numbers,
        images=1,
        total_steps=1,
    )
    assert plan.step_seconds is None and not plan.fits
    assert plan.memory_bytes == 2 * 4 * (1 << 40) + 4
    assert "too much" in dict(plan_rows(plan))["memory"]


@pytest.mark.parametrize("name", ["total_steps", "images", "checkpoints"])
def test_what_cannot_be_planned_is_refused(name):
    numbers = {"total_steps": 1, "images": 1, "checkpoints": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        plan_run(train, {}, {}, trained={}, **numbers)
