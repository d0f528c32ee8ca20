"""One step of training: the gradient of the whole batch, however it is cut up and spread."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmacjax import losses, scenes
from rmacjax.backbones import (
    TORCHVISION_CONVENTION,
    Network,
    initialize,
    input_means,
    map_size,
)
from rmacjax.descriptors import Params, describe_batch, region_grid
from rmacjax.finetune.batches import Batch, Block
from rmacjax.finetune.optimizer import (
    Rates,
    apply,
    centred,
    follow,
    optimizer,
    rate_at,
    uncentred,
)
from rmacjax.finetune.state import (
    Forward,
    Moments,
    Trained,
    initial_state,
    running_whitening,
    to_params,
    update_moments,
)
from rmacjax.finetune.step import (
    Objective,
    Plan,
    _input_means,
    compiled_anew,
    embed,
    everywhere,
    gradients,
    spread,
    train_step,
)
from rmacjax.regions import px_to_cells
from rmacjax.whitening import Whitening

NETWORK = Network("alexnet", False, TORCHVISION_CONVENTION, gem_p=10.0)
RATES = Rates(rate=1e-4, steps=10, warmup=2)


def block(images, sizes=None):
    h, w = images.shape[1:3]
    sizes = np.full((len(images), 2), (h, w), np.int32) if sizes is None else sizes
    grids = [region_grid(*map_size(NETWORK, *size)) for size in sizes.tolist()]
    return Block(images, sizes, np.stack(grids))


@pytest.fixture(scope="module", autouse=True)
def nothing_read_back():
    """Programs of several CPU devices deadlock when they are read back."""
    with compiled_anew():
        yield


@pytest.fixture(scope="module")
def weights():
    return initialize("alexnet", 0)


@pytest.fixture(scope="module")
def searches():
    """Four outlined things and photos that show them, one of each unreadable."""
    found = scenes.search_batch(
        np.random.default_rng(0), 4, (64, 96), (96, 96), textures=scenes.texture_bank(0, 8)
    )
    cells = map_size(NETWORK, 96, 96)
    labels = np.tile(np.arange(4), 2).astype(np.int32)
    labels[[3, 7]] = -1
    photos = block(found.photos, np.asarray([[96, 96], [96, 96], [80, 96], [96, 90]], np.int32))
    return Batch(
        (block(found.queries), photos),
        labels,
        np.tile(np.arange(4), 2).astype(np.int32),
        np.asarray(px_to_cells(found.boxes, cells, (96, 96)), np.float32),
        found.overlaps,
    )


def some_whitening():
    """Well conditioned, so that what is compared is the step and not what rounding makes of it."""
    rng = np.random.default_rng(1)
    turned, _ = np.linalg.qr(rng.normal(size=(256, 48)))
    scaled = turned.T * rng.uniform(0.5, 2, (48, 1))
    return Whitening(np.full(256, 0.05, np.float32), scaled.astype(np.float32))


def state_of(weights, plan, **options):
    whitening = some_whitening() if plan.forward.whitening == "layer" else None
    params = Params(NETWORK, weights, whitening)
    return initial_state(params, plan.forward, optimizer(plan.rates), **options)


def differ(a, b):
    """The largest difference of two pytrees, each array's as a part of its largest entry."""
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max() / max(np.abs(np.asarray(x)).max(), 1e-12))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "boxes", "exponent"),
    [
        ("layer", "none", 3.0),
        ("running", "known", 3.0),
        ("none", "latent", 3.0),
        ("none", "latent", 10.0),
    ],
)
def test_chunks_and_devices_change_nothing(weights, searches, kind, boxes, exponent):
    """Two passes in chunks, and two devices: the gradient is that of the whole batch."""
    goal = Objective("info-nce", plain=0.2, boxes=boxes)
    # The gradient of a larger exponent is a sum in which nearly all cancels, except rounding.
    nearly = 1e-5 if exponent <= 3 else 2e-4
    network = replace(NETWORK, gem_p=exponent)
    plan = Plan(Forward(network, "rgem", True, kind), goal, RATES)
    state = state_of(weights, plan)
    if kind == "running":
        rows = np.random.default_rng(2).random((500, 256)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        seen = Moments(jnp.float32(3), jnp.asarray(rows.mean(0)), jnp.asarray(rows.T @ rows / 500))
        state = state._replace(moments=seen)
    step = jax.jit(gradients, static_argnames="plan")
    expected, facts, moments = step(state, searches, plan=plan)
    assert float(facts["loss"]) > 0 and bool(np.isfinite(facts["loss"]))
    cut = replace(plan, chunk=2)
    for batch, way in ((searches, cut), (spread(searches, 2), plan), (spread(searches, 2), cut)):
        gradient, also, now = step(state, batch, plan=way)
        one, other = (each._replace(log_exponent=None) for each in (expected, gradient))
        assert differ(one, other) < 1e-5
        assert differ(expected.log_exponent, gradient.log_exponent) < nearly
        assert differ(facts, also) < 1e-5
        if moments is not None:
            assert differ(moments, now) < 1e-5


def test_devices_share_every_chunk(weights, searches):
    """No photo travels from one device to another, and each convolves half of a chunk."""
    plan = Plan(Forward(NETWORK, "mac", whitening="none"), Objective("info-nce"), RATES, chunk=2)
    state = everywhere(state_of(weights, plan), 2)
    step = jax.jit(gradients, static_argnames="plan")
    program = step.lower(state, spread(searches, 2), plan=plan).compile().as_text()
    moved = re.findall(r"u8\[[0-9,]*\]\S* (?:all-|collective-)\S*", program)
    assert not moved, moved
    pixels = re.findall(r"f32\[(\d+),(?:64,96|96,96),3\]", program)
    assert set(pixels) == {"1"}


def test_what_was_not_read_has_no_part_in_the_moments(weights, searches):
    plan = Plan(Forward(NETWORK, "rgem", whitening="running"), Objective("info-nce"), RATES)
    _, last = searches.blocks
    regions = np.array(last.regions)
    regions[3] = 0
    unread = last._replace(regions=regions)
    trained = state_of(weights, plan).trained
    fewer = jax.tree.map(lambda x: x[:3], last)
    moments = [
        embed(trained, None, jax.tree.map(jnp.asarray, block), plan.forward, False)[0].descriptors
        for block in (unread, fewer)
    ]
    assert not np.any(moments[0][3])
    np.testing.assert_allclose(moments[0][:3], moments[1], atol=1e-6)
    state = state_of(weights, plan)
    seen = [
        gradients(state, searches._replace(blocks=(block,), labels=labels, clusters=labels), plan)
        for block, labels in (
            (unread, np.asarray([0, 0, 1, -1], np.int32)),
            (fewer, np.asarray([0, 0, 1], np.int32)),
        )
    ]
    assert differ(seen[1][2], seen[0][2]) < 1e-5


def test_an_exponent_that_is_learned_stays_one_or_more(weights, searches):
    forward = Forward(replace(NETWORK, gem_p=1.0), "gem", True, "none")
    for goal in ("contrastive", "info-nce"):
        plan = Plan(forward, Objective(goal), replace(RATES, rate=1.0))
        params = Params(forward.network, weights)
        state = initial_state(params, plan.forward, optimizer(plan.rates))
        for _ in range(3):
            state, _ = train_step(state, searches, plan=plan)
            assert float(state.trained.log_exponent) >= 0


@pytest.mark.parametrize("pool", ["rmac", "rgem"])
@pytest.mark.parametrize("kind", ["layer", "running"])
def test_the_loss_sees_what_describe_gives(weights, searches, kind, pool):
    """The loss is that of descriptors made by the forward pass that serves."""
    plan = Plan(Forward(NETWORK, pool, whitening=kind), Objective("contrastive"), RATES)
    state = state_of(weights, plan)
    if kind == "running":
        rows = np.random.default_rng(2).random((500, 256)).astype(np.float32)
        state = state._replace(
            moments=Moments(jnp.float32(1), jnp.asarray(rows.mean(0)), jnp.asarray(rows.T @ rows))
        )
    params = to_params(state, plan.forward)
    served = [
        describe_batch(params, *jax.tree.map(jnp.asarray, tuple(block)), pool=pool).descriptors
        for block in searches.blocks
    ]
    masks = losses.pair_masks(searches.labels, searches.clusters)
    expected = losses.contrastive(jnp.concatenate(served), *masks)
    _, facts = train_step(state, searches, plan=plan)
    assert float(facts["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_step_follows_the_gradient_by_the_written_rule(weights, searches):
    """AdamW in NumPy: clipping, bias correction, decay of kernels alone; and the average."""
    rates = Rates(rate=1e-3, steps=10, warmup=2, decay=0.1, clip=0.5, average=0.9)
    plan = Plan(Forward(NETWORK, "mac", whitening="none"), Objective("info-nce"), rates)
    state = state_of(weights, plan, average=True)
    before = jax.device_get(state.trained)
    gradient, _, _ = gradients(state, searches, plan)
    gradient = jax.device_get(gradient)
    length = np.sqrt(
        sum(float((g.astype(np.float64) ** 2).sum()) for g in jax.tree.leaves(gradient))
    )
    moved, seen = train_step(state, searches, plan=plan)
    assert float(seen["gradient"]) == pytest.approx(length, rel=1e-4)
    for name, old in before.weights.items():
        g = gradient.weights[name].astype(np.float64) * min(1, 0.5 / length)
        # The first step's moments, their bias corrected, are the gradient and its square.
        change = g / (np.abs(g) + 1e-8) + 0.1 * old * name.endswith(".kernel")
        expected = old - 0.5e-3 * change
        sure = np.abs(g) > 1e-6
        np.testing.assert_allclose(moved.trained.weights[name][sure], expected[sure], atol=2e-6)
        kept = old + (1 - 0.1) * (np.asarray(moved.trained.weights[name]) - old)
        np.testing.assert_allclose(moved.average.weights[name], kept, atol=1e-6)
    assert int(moved.step) == 1
    assert float(moved.trained.log_exponent) == pytest.approx(np.log(10), rel=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_centred_steps_are_steps_of_centred_inputs(rng, groups):
    """A step in K and b' of ``K * (x - m) + b'``, by JAX's own gradients, moves as much."""
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4 // groups, 6)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=6), jnp.float32)
    x = jnp.asarray(rng.random((2, 8, 9, 4)) * 3, jnp.float32)
    mean = jnp.asarray(rng.random(4) * 3, jnp.float32)

    def answer(kernel, bias, x):
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
        return (
            jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", **options)
            + bias[None, None, None]
        )

    def loss(kernel, bias, offset):
        return jnp.sum(jnp.sin(answer(kernel, bias, x - offset[None, None, None])))

    here = bias + answer(kernel, jnp.zeros(6), jnp.tile(mean, (1, 3, 3, 1)))[0, 0, 0]
    wanted = jax.grad(loss, (0, 1))(kernel, here, mean)
    plain = jax.grad(loss, (0, 1))(kernel, bias, jnp.zeros(4))
    names = ("conv.kernel", "conv.bias")
    given = centred(dict(zip(names, plain, strict=True)), {"conv": mean})
    for name, gradient in zip(names, wanted, strict=True):
        np.testing.assert_allclose(given[name], gradient, rtol=1e-4, atol=1e-3)
    # Whatever an optimizer makes of it, such as its sign, is a step of the same function.
    step = {name: 0.01 * jnp.sign(value) for name, value in given.items()}
    moved = uncentred(step, {"conv": mean})
    np.testing.assert_allclose(
        answer(kernel + moved["conv.kernel"], bias + moved["conv.bias"], x),
        answer(kernel + step["conv.kernel"], here + step["conv.bias"], x - mean[None, None, None]),
        atol=1e-4,
    )


def test_centred_steps_leave_mean_answers_where_they_were(weights, searches):
    """Adam moves all numbers of a kernel alike; centred, that no longer shifts whole channels."""
    rates = replace(RATES, rate=1e-3, warmup=0, centred=True)
    plan = Plan(Forward(NETWORK, "mac", whitening="none"), Objective("info-nce"), rates)
    moved, _ = train_step(state_of(weights, plan), searches, plan=plan)
    change = jax.tree.map(jnp.subtract, moved.trained.weights, weights)
    images, sizes, _ = jax.tree.map(jnp.asarray, tuple(searches.blocks[-1]))
    kernels, shifts = [], []
    for name, mean in input_means(NETWORK, weights, images, sizes).items():
        kernels.append(np.einsum("hwio,i->o", change[f"{name}.kernel"], mean))
        shifts.append(kernels[-1] + change[f"{name}.bias"])
    assert np.median(np.abs(np.concatenate(kernels))) > 0.1
    # What is left is the bias's own step, and that here images weigh by their pixels.
    assert np.max(np.abs(np.concatenate(shifts))) < 0.03


@pytest.mark.parametrize("centred", [False, True])
def test_a_step_is_the_same_in_chunks_and_on_devices(weights, searches, centred):
    rates = replace(RATES, rate=1e-5, warmup=0, centred=centred)  # the command's rate
    plan = Plan(Forward(NETWORK, "rgem", whitening="none"), Objective("info-nce"), rates)
    expected, _ = train_step(state_of(weights, plan), searches, plan=plan)
    # Adam's first step is the gradient over its own size, so of what is next to nothing its sign
    # alone is left, which rounding decides: such numbers are told by their moments.
    sure = {
        name: np.abs(first) > 1e-3 * np.abs(first).max()
        for name, first in jax.device_get(expected.optimizer[1].mu.weights).items()
    }
    state, batch = everywhere(state_of(weights, plan), 2), spread(searches, 2)
    moved, _ = train_step(state, batch, plan=replace(plan, chunk=2))
    assert differ(expected.optimizer[1].mu, moved.optimizer[1].mu) < 1e-5
    assert differ(expected.optimizer[1].nu, moved.optimizer[1].nu) < 1e-5
    ones, others = (jax.device_get(each.trained.weights) for each in (expected, moved))
    off = {name: np.float64(ones[name]) - np.float64(others[name]) for name in ones}
    if centred:
        # A bias makes up for all of its kernel's steps, those of unsure signs among them: its own
        # step is told by the mean answer.
        for name, mean in _input_means(state_of(weights, plan).trained, searches, plan).items():
            off[f"{name}.bias"] += np.einsum("hwio,i->o", off[f"{name}.kernel"], mean)
    for name, apart in off.items():
        most = 1e-7 if name.endswith(".kernel") else 1e-6
        assert np.mean(sure[name]) > 0.2 and np.max(np.abs(apart[sure[name]])) < most


def test_steps_of_one_size_are_compiled_once(weights, searches):
    plan = Plan(Forward(NETWORK, "mac", whitening="none"), Objective("info-nce"), RATES)
    train_step.clear_cache()
    for devices in (1, 2):
        state, batch = everywhere(state_of(weights, plan), devices), spread(searches, devices)
        for _ in range(3):
            state, _ = train_step(state, batch, plan=plan)
        assert train_step._cache_size() == devices


def test_adam_and_the_average_remember_as_written(rng):
    """Four steps of AdamW in NumPy, and an average that late in a run keeps its share."""
    rates = Rates(rate=1e-2, steps=9, warmup=2, decay=0.1, clip=1e9)
    kernel = rng.normal(size=(1, 1, 3, 4))
    trained = Trained(
        {"a.kernel": jnp.asarray(kernel, jnp.float32), "a.bias": jnp.zeros(4)}, None, jnp.zeros(())
    )
    inner = optimizer(rates).init(trained)
    first = second = 0.0
    for step in range(4):
        g = rng.normal(size=kernel.shape)
        given = trained._replace(
            weights={"a.kernel": jnp.asarray(g, jnp.float32), "a.bias": jnp.ones(4)}
        )
        trained, inner = apply(rates, given, inner, trained)
        first, second = 0.9 * first + 0.1 * g, 0.98 * second + 0.02 * g * g
        mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.98 ** (step + 1))
        change = mean / (np.sqrt(square) + 1e-8) + 0.1 * kernel
        kernel = kernel - float(rate_at(rates, step)) * change
        np.testing.assert_allclose(trained.weights["a.kernel"], kernel, atol=1e-5)
    for step, kept in ((0, 0.1), (5, 0.4), (80, 0.9), (5000, 0.9)):
        found = follow({"a": jnp.ones(2)}, {"a": jnp.zeros(2)}, jnp.int32(step), 0.9)
        np.testing.assert_allclose(found["a"], kept, rtol=1e-5)


def test_a_step_that_breaks_the_weights_is_not_taken(weights, searches):
    rates = replace(RATES, rate=3e38, warmup=0, decay=10.0)
    plan = Plan(Forward(NETWORK, "mac", whitening="none"), Objective("info-nce"), rates)
    state = state_of(weights, plan)
    before = jax.device_get(state.trained.weights)
    kept, facts = train_step(state, searches, plan=plan)
    assert np.isfinite(float(facts["loss"])) and np.isfinite(float(facts["gradient"]))
    assert int(kept.step) == 0
    for name, array in before.items():
        np.testing.assert_array_equal(array, kept.trained.weights[name])


def test_rates_rise_then_fall_as_a_cosine():
    rates = Rates(rate=2.0, steps=100, warmup=10, last=0.1)
    assert float(rate_at(rates, 0)) == pytest.approx(0.2)
    assert float(rate_at(rates, 9)) == pytest.approx(2.0)
    for step in (10, 40, 99):
        part = (step - 10) / 90
        expected = 2.0 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * part)))
        assert float(rate_at(rates, step)) == pytest.approx(expected, rel=1e-5)
    assert float(rate_at(replace(rates, warmup=0), 0)) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="rate must be finite and above 0"):
        Rates(rate=0.0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Rates(steps=0)
    with pytest.raises(ValueError, match="average must be at least 0 and below 1"):
        Rates(average=1.0)


def test_ten_objects_are_learned_by_heart():
    """Ten objects, two views each: the loss goes to nearly zero and each finds its other view."""
    rng = np.random.default_rng(5)
    first, second = scenes.training_batch(rng, 10, 64, textures=scenes.texture_bank(0, 8))
    labels = np.tile(np.arange(10, dtype=np.int32), 2)
    batch = Batch((block(np.concatenate([first, second])),), labels, labels)
    rates = Rates(rate=3e-4, steps=60, warmup=5, decay=0.0)
    plan = Plan(Forward(NETWORK, "rgem", True, "none"), Objective("info-nce"), rates)
    state = initial_state(Params(NETWORK, initialize("alexnet", 3)), plan.forward, optimizer(rates))
    seen = []
    for _ in range(60):
        state, facts = train_step(state, batch, plan=plan)
        seen.append({name: float(value) for name, value in facts.items()})
    assert seen[0]["found"] < 0.9 and seen[0]["loss"] > 0.5
    assert seen[-1]["loss"] < 0.01 and seen[-1]["found"] == 1.0
    assert float(state.trained.log_exponent) != pytest.approx(np.log(10), abs=1e-4)


def test_a_loss_that_is_no_number_changes_nothing(weights, searches):
    plan = Plan(Forward(NETWORK, "mac", whitening="none"), Objective("info-nce"), RATES)
    broken = {**weights, "conv5.bias": weights["conv5.bias"].at[0].set(np.nan)}
    state = state_of(broken, plan)
    before = jax.device_get(state)
    after, facts = train_step(state, searches, plan=plan)
    assert not np.isfinite(facts["loss"])
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_running_whitening_whitens_what_it_has_seen():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    moments = Moments(jnp.float32(0), jnp.zeros(6), jnp.zeros((6, 6)))
    unknown = running_whitening(moments)
    np.testing.assert_array_equal(unknown.projection, np.eye(6))
    for part in np.split(rows, 40):
        now = Moments(jnp.float32(1), jnp.asarray(part.mean(0)), jnp.asarray(part.T @ part / 100))
        moments = update_moments(moments, now, share=1e-3)
    np.testing.assert_allclose(moments.mean, rows.mean(0), atol=1e-5)
    whitening = running_whitening(moments, ridge=0.0)
    white = (rows - np.asarray(whitening.mean)) @ np.asarray(whitening.projection).T
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(6), atol=1e-3)


def test_what_cannot_be_is_refused(weights, searches):
    with pytest.raises(ValueError, match="the weights hold none"):
        forward_ = Forward(NETWORK)
        initial_state(Params(NETWORK, weights), forward_, optimizer(RATES))
    with pytest.raises(ValueError, match="cannot be shared evenly by 2 devices"):
        spread(searches._replace(blocks=(block(np.zeros((3, 64, 64, 3), np.uint8)),)), 2)
    plan = Plan(Forward(NETWORK, whitening="none"), Objective(boxes="known"), RATES, 3)
    state = state_of(weights, plan)
    with pytest.raises(ValueError, match="whole chunks of 3"):
        train_step(state, searches, plan=plan)


def test_bfloat16_computes_with_float32_weights(weights, searches):
    """Nearly the same loss and gradient, and weights that stay float32."""
    plan = Plan(Forward(NETWORK, "mac", whitening="none"), Objective("info-nce"), RATES)
    narrow = replace(
        plan, forward=replace(plan.forward, network=replace(NETWORK, compute_dtype="bfloat16"))
    )
    one, facts, _ = gradients(state_of(weights, plan), searches, plan)
    other, narrow_facts, _ = gradients(state_of(weights, narrow), searches, narrow)
    assert float(narrow_facts["loss"]) == pytest.approx(float(facts["loss"]), rel=0.05)
    for name, gradient in one.weights.items():
        also = other.weights[name]
        assert also.dtype == jnp.float32
        cosine = jnp.vdot(gradient, also) / jnp.linalg.norm(gradient) / jnp.linalg.norm(also)
        assert float(cosine) > 0.9, name


def test_recomputing_spares_memory_and_changes_nothing(weights, searches):
    plan = Plan(Forward(NETWORK, "mac", whitening="none"), Objective("info-nce"), RATES)
    spare = replace(plan, forward=replace(plan.forward, recompute=True))
    state = state_of(weights, plan)
    assert differ(gradients(state, searches, plan)[0], gradients(state, searches, spare)[0]) < 1e-5

    def kept(way):
        def see(trained):
            first = jax.tree.map(jnp.asarray, searches.blocks[0])
            return embed(trained, None, first, way.forward, False)[0].queries

        _, pull = jax.vjp(see, state.trained)
        arrays = [array for array in jax.tree.leaves(pull) if array.ndim == 4]
        return sum(array.nbytes for array in arrays if len(array) == 4)

    assert kept(spare) < 0.7 * kept(plan)
