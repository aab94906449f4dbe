"""Methods that choose element by element against their oracles: every dtype, every option, masks that are random."""

import numpy as np
import pytest
import torch
from tests.oracles import elementwise as oracle
from tests.oracles import exact, field
from tests.oracles.data import FLOATS, fine_tunes, merge_one, normal

import stockpot
from stockpot.methods import all_methods

GENERIC = [0.5772156649, 0.3010299957, 0.9162907319]
"""Weights of which no small multiples cancel, so that no sign hangs on the last bit."""
CHOOSING = [
    (
        method,
        {
            name: GENERIC if name == "weight" and value != field.SIGNED["weight"] else value
            for name, value in given.items()
        },
    )
    for method, cases in field.CASES.items()
    if method in all_methods()
    for given in cases
    if method != "task_arithmetic"
]
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


def as_arrays(tensors):
    """In float64, which holds every dtype."""
    return [tensor.double().numpy() for tensor in tensors]


def assert_rounded(out, expected, slack=1e-6):
    """Every element is the nearest number of its dtype, or of two nearest one; in float64, to a dozen roundings."""
    found, expected = exact.numbers(out), expected.ravel()
    if out.dtype == torch.float64:
        assert found == pytest.approx(expected, rel=1e-13, abs=1e-14)
        return
    nearest = np.abs(exact.rounded(expected, out.dtype) - expected)
    assert np.flatnonzero(np.abs(found - expected) > nearest * (1 + slack)).tolist() == []


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("method", "given"), CHOOSING)
def test_numbers(method, given, dtype):
    """What the oracle makes of what is stored, rounded once; in 16 bits hundreds of steps are of equal magnitude."""
    base, models = fine_tunes(field.model_count(method), 37, 29, seed=3, dtype=dtype, shared=0.05, own=0.05)
    out = merge_one(method, base, models, parameters=given)
    anchor, *others = as_arrays([base, *models])
    assert out.dtype == dtype
    assert_rounded(out, field.expected(method, given, anchor, others))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (3, 1), (2, 3, 4), (5, 0)])
@pytest.mark.parametrize(("method", "given"), CHOOSING[::2])
def test_shapes(method, given, shape):
    """Without axes, without elements, with one element in a row."""
    base, models = fine_tunes(field.model_count(method), *shape, seed=5, dtype=torch.float64)
    out = merge_one(method, base, models, parameters=given)
    anchor, *others = as_arrays([base, *models])
    assert out.shape == base.shape
    if base.numel():
        assert_rounded(out, field.expected(method, given, anchor, others))


@pytest.mark.parametrize(
    "method", [name for name in ("ties", "breadcrumbs_ties", "dare_ties", "della") if name in all_methods()]
)
def test_signs_that_cancel(method):
    """With equal weights and steps on a grid, sums of exactly zero are many: they count as positive."""
    base = torch.zeros(400, dtype=torch.float64)
    models = [torch.from_numpy(np.random.default_rng(n).integers(-3, 4, 400).astype(float)) for n in range(3)]
    given = {"weight": [1.0, 1.0, 1.0]}
    out = merge_one(method, base, models, parameters=given)
    assert_rounded(out, field.expected(method, given, *[base.numpy(), as_arrays(models)]))
    zero = sum(models) == 0
    assert (out[zero] >= 0).all()
    assert (out[zero] > 0).any()


def masks_of(method, base, models, given, **options):
    """What is kept of each task vector: merged with no weight on the others, unscaled, without election."""
    linear = {"dare_ties": "dare_linear", "della": "della_linear"}.get(method, method)
    found = []
    for number in range(len(models)):
        weight = [float(n == number) for n in range(len(models))]
        own = {**given, "weight": weight, "rescale": False, "normalize": False, "lambda": 1.0}
        found.append((merge_one(linear, base, models, parameters=own, **options) != base).numpy())
    return found


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", RANDOM)
def test_random_methods_given_their_masks(method, normalize, rescale):
    """Model by model the same masks in every method and under every option; with them, the oracle's numbers."""
    base, models = fine_tunes(3, 40, 25, seed=7)
    given = {"density": [0.5, 0.3, 0.8], **({"epsilon": [0.1, 0.2, 0.15]} if "della" in method else {})}
    masks = masks_of(method, base, models, given)
    options = {"weight": GENERIC, "normalize": normalize, "rescale": rescale, "lambda": 0.7}
    out = merge_one(method, base, models, parameters={**given, **options})
    anchor, *others = as_arrays([base, *models])
    elect = method in ("dare_ties", "della")
    if "della" in method:
        uniforms = [np.where(mask, 0.0, 1.0) for mask in masks]
        expected = oracle.della(
            anchor, others, GENERIC, given["density"], given["epsilon"], uniforms, elect, normalize, 0.7, rescale
        )
    else:
        expected = oracle.dare(anchor, others, GENERIC, given["density"], masks, elect, normalize, 0.7, rescale)
    assert_rounded(out, expected)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.97])
def test_dare_keeps_at_random(density):
    """By a fair coin for each element, model and tensor name: mean, variance and independence, to four sigma."""
    base, models = torch.zeros(200, 1000, dtype=torch.float64), [normal(200, 1000, seed=n) for n in (1, 2)]
    kept = np.array(masks_of("dare_linear", base, models, {"density": density}))
    sigma = np.sqrt(density * (1 - density))
    assert abs(kept.mean() - density) < 4 * sigma / np.sqrt(kept.size)
    assert np.abs(kept.mean(axis=2) - density).max() < 5 * sigma / np.sqrt(1000)
    assert np.abs(kept.mean(axis=1) - density).max() < 5 * sigma / np.sqrt(200)
    assert abs(np.corrcoef(kept.reshape(2, -1))[0, 1]) < 4 / np.sqrt(200_000)
    flat = kept[0].ravel()
    for step in (1, 2, 8, 1000):
        assert abs(np.corrcoef(flat[:-step], flat[step:])[0, 1]) < 4 / np.sqrt(200_000)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_random_methods_are_task_arithmetic_in_the_mean(method):
    """Rescaled, every element's mean is its step, and its variance step^2 (1 - p) / p: the papers' point."""
    row = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0], dtype=torch.float64)
    given = {"weight": 1.0, "density": 0.5, **({"epsilon": 0.2} if "della" in method else {})}
    base, model = torch.zeros(50_000, 5, dtype=torch.float64), row.repeat(50_000, 1)
    out = merge_one(method, base, [model], parameters=given).numpy()
    p = np.array([0.3, 0.4, 0.5, 0.6, 0.7]) if "della" in method else np.full(5, 0.5)
    variance = row.numpy() ** 2 * (1 - p) / p
    assert np.abs((out.mean(axis=0) - row.numpy()) / np.sqrt(variance / 50_000)).max() < 4
    assert out.var(axis=0) == pytest.approx(variance, rel=0.02)


def test_della_keeps_by_rank():
    """The share kept of each rank of a row is its probability, wherever in the row it stands."""
    generator = np.random.default_rng(3)
    model = torch.from_numpy(generator.permuted(np.tile(np.arange(1.0, 9.0), (40_000, 1)), axis=1))
    (kept,) = masks_of("della_linear", 0 * model, [model], {"density": 0.6, "epsilon": 0.3})
    for rank in range(8):
        share, p = kept[model.numpy() == rank + 1].mean(), 0.3 + 0.6 * rank / 7
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / 40_000)


@pytest.mark.parametrize("method", RANDOM)
def test_masks_hang_on_seed_name_and_place_alone(method):
    """More tensors, or another order of them, change no bit; another seed, name or place does."""
    base, models = fine_tunes(2, 30, 20, seed=9)
    given = {"weight": 1.0, "density": 0.5}

    def merged(name, order=(0, 1), **more):
        maps = [{**{key: value for key, value in more.items() if key != "seed"}, name: one} for one in (base, *models)]
        maps = [maps[0], *(maps[1:][n] for n in order)]
        out = stockpot.merge_state_dicts(
            method, base=maps[0], models=maps[1:], parameters=given, seed=more.get("seed", 0)
        )
        return out[name]

    once = merged("w")
    assert torch.equal(merged("w", a=normal(5, seed=1), z=normal(900, seed=2)), once)
    assert not torch.equal(merged("w", seed=1), once)
    assert not torch.equal(merged("v"), once)
    assert not torch.equal(merged("w", order=(1, 0)), once)
