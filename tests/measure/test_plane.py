"""The plane through three points, against vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.measure import plane_through

GENERATOR = np.random.default_rng(5)


def gram(base: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Inner products of (w0, d_1 .. d_N)."""
    vectors = np.vstack([base, steps])
    return vectors @ vectors.T


@pytest.mark.parametrize("corners", [(0, 1, 2), (1, 2, 3), (3, 0, 2)])
def test_the_basis_is_the_papers(corners: tuple[int, int, int]) -> None:
    """u1 = q - p and u2 = (r - p) less its part along u1, orthonormal; coordinates are those of the vectors."""
    base, steps = GENERATOR.normal(size=50), GENERATOR.normal(size=(3, 50)) + 0.5
    points = np.vstack([base, base + steps])
    p, q, r = (points[number] for number in corners)
    one = (q - p) / np.linalg.norm(q - p)
    two = (r - p) - ((r - p) @ one) * one
    two /= np.linalg.norm(two)
    unit = np.vstack([np.zeros(3), np.eye(3)])
    plane = plane_through(gram(base, steps), unit[list(corners)])
    assert plane is not None
    found = base + plane.point(0.7, -1.3) @ steps
    np.testing.assert_allclose(found, p + 0.7 * one - 1.3 * two, atol=1e-12)
    for number in range(4):
        x, y, off = plane.place(gram(base, steps)[None], unit[number][None])
        v = points[number] - p
        np.testing.assert_allclose([x, y], [v @ one, v @ two], atol=1e-12)
        # A root of what rounding leaves of squares of about 50.
        assert off == pytest.approx(np.linalg.norm(v - (v @ one) * one - (v @ two) * two), abs=1e-6)


def test_weights_of_their_own_in_each_group() -> None:
    """A point that mixes each tensor differently, as Model Stock's, is placed by the sum over tensors."""
    base, steps = GENERATOR.normal(size=60), GENERATOR.normal(size=(2, 60))
    parts = [slice(0, 20), slice(20, 60)]
    grams = np.stack([gram(base[part], steps[:, part]) for part in parts])
    plane = plane_through(grams.sum(axis=0), np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert plane is not None
    weights = np.array([[0.2, 0.3], [0.5, 0.1]])
    vector = np.concatenate([weights[k] @ steps[:, part] for k, part in enumerate(parts)])
    axes = plane.axes @ steps
    x, y, off = plane.place(grams, weights)
    np.testing.assert_allclose([x, y], axes @ vector, atol=1e-12)
    assert off == pytest.approx(np.linalg.norm(vector - axes.T @ (axes @ vector)), abs=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_scale_does_not_matter(scale: float) -> None:
    """Thin triangles are planes at every scale; three points on a line never are."""
    steps = np.zeros((2, 10))
    steps[0, 0], steps[1, 0], steps[1, 1] = scale, 2 * scale, 1e-4 * scale
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    plane = plane_through(gram(np.ones(10), steps), corners)
    assert plane is not None
    np.testing.assert_allclose(plane.axes @ steps @ steps.T @ plane.axes.T, np.eye(2), atol=1e-6)
    steps[1, 1] = 0.0
    assert plane_through(gram(np.ones(10), steps), corners) is None
    steps[1] = steps[0]
    assert plane_through(gram(np.ones(10), steps), corners) is None
    assert plane_through(gram(np.ones(10), 0 * steps), corners) is None
