"""The handwritten digits: what they are, who sees which, and the shifts."""

from __future__ import annotations

import sys

import pytest
import torch

from stockpot import errors
from stockpot.lab._digits import SHIFTS, TEST_COUNT, Examples, Split, blurred, jittered, shifted, split, warped
from stockpot.lab._random import stream


def _keys(examples: Examples) -> set[bytes]:
    return {image.numpy().tobytes() for image in examples.images}


def test_the_digits_are_the_known_set(digits: Examples) -> None:
    """1,797 pictures of 8 x 8 whole counts of 0 .. 16, about 180 of each digit."""
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == torch.float32
    assert digits.labels.dtype == torch.int64
    assert (digits.images.min(), digits.images.max()) == (0, 16)
    assert torch.equal(digits.images, digits.images.round())
    assert digits.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_a_missing_scikit_learn_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn the error says what to install."""
    from stockpot.lab import _digits

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(errors.MissingExtraError, match=r"scikit-learn is not installed.*stockpot\[demo\]"):
        _digits.load_digits()


@pytest.mark.parametrize("seed", [0, 1, 77])
def test_a_split_is_disjoint_and_even(digits: Examples, seed: int) -> None:
    """No digit is in two parts, none is lost, and the training digits have ten of each class."""
    parts = split(digits, train_count=100, seed=seed)
    train, spare, test = _keys(parts.train), _keys(parts.spare), _keys(parts.test)
    assert len(digits) == len(parts.train) + len(parts.spare) + len(parts.test)
    assert not train & test
    assert not train & spare
    assert not spare & test
    assert train | spare | test == _keys(digits)
    assert parts.train.labels.bincount().tolist() == [10] * 10
    assert len(parts.test) == TEST_COUNT


def test_the_test_digits_are_the_same_for_every_seed(digits: Examples) -> None:
    """A seed draws other training digits, never other test digits."""
    one, other = (split(digits, train_count=100, seed=seed) for seed in (0, 1))
    assert torch.equal(one.test.images, other.test.images)
    assert _keys(one.train) != _keys(other.train)


def test_a_split_is_decided_by_its_seed(digits: Examples) -> None:
    """One seed gives the same training digits twice, in the same order."""
    one, again = (split(digits, train_count=50, seed=5) for _ in range(2))
    assert torch.equal(one.train.images, again.train.images)
    assert torch.equal(one.train.labels, again.train.labels)


@pytest.mark.parametrize("count", [0, 15, 510, -10])
def test_a_count_that_cannot_be_even_is_refused(digits: Examples, count: int) -> None:
    """Training digits come in tens, and some are left over."""
    with pytest.raises(errors.ParameterError, match="in tens"):
        split(digits, train_count=count, seed=0)


def test_every_picture_keeps_its_label(digits: Examples) -> None:
    """Splitting moves a picture and what it shows together."""
    known = {image.numpy().tobytes(): int(label) for image, label in zip(digits.images, digits.labels, strict=True)}
    parts: Split = split(digits, train_count=100, seed=2)
    for part in (parts.train, parts.spare, parts.test):
        for image, label in zip(part.images, part.labels, strict=True):
            assert known[image.numpy().tobytes()] == int(label)


def test_the_shifts_are_the_six_promised() -> None:
    """Names that the report lists."""
    assert list(SHIFTS) == ["rotation", "shear", "noise", "blur", "contrast", "occlusion"]


@pytest.mark.parametrize("name", list(SHIFTS))
def test_a_shift_repeats_and_keeps_shape_range_and_labels(digits: Examples, name: str) -> None:
    """Each shift changes the pictures, the same way twice, and leaves shape, range, labels and its input alone."""
    some = digits.take(torch.arange(64))
    before = some.images.clone()
    once, again = (shifted(some, seed=4)[name] for _ in range(2))
    assert torch.equal(once.images, again.images)
    assert once.images.shape == some.images.shape
    assert once.images.dtype == torch.float32
    assert once.images.min() >= 0
    assert once.images.max() <= 16
    assert torch.equal(once.labels, some.labels)
    assert torch.equal(some.images, before)
    assert (once.images - some.images).abs().mean() > 0.3


def test_contrast_is_a_straight_line_and_occlusion_a_square_of_three(digits: Examples) -> None:
    """Golden values: 0 and 16 become 4.8 and 10.4; nine pixels go dark and no other changes."""
    flat = Examples(torch.tensor([0.0, 16.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8), torch.tensor([0, 1]))
    found = shifted(flat, seed=0)
    torch.testing.assert_close(found["contrast"].images[:, 0, 0, 0], torch.tensor([4.8, 10.4]))
    covered = found["occlusion"].images[1, 0] == 0
    rows, columns = covered.any(1).nonzero().flatten(), covered.any(0).nonzero().flatten()
    assert covered.sum() == 9
    assert (rows.max() - rows.min(), columns.max() - columns.min()) == (2, 2)
    assert set(found["occlusion"].images[1].unique().tolist()) == {0.0, 16.0}


def test_blur_spreads_one_pixel_as_the_binomial_filter() -> None:
    """Golden values: a lone pixel of 16 becomes 4 in the middle, 2 beside, 1 at the corners."""
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 4] = 16
    assert blurred(image)[0, 0, 2:5, 3:6].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


def test_warping_by_the_identity_changes_nothing_and_by_a_quarter_turn_turns(digits: Examples) -> None:
    """Golden values: theta is the map from where a pixel goes to where it is read."""
    some = digits.images[:5]
    still = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(5, 2, 3)
    torch.testing.assert_close(warped(some, still), some, atol=1e-4, rtol=0)  # fp32 coordinates times 16
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0]]).expand(5, 2, 3)
    torch.testing.assert_close(warped(some, quarter), some.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_jitter_repeats_and_differs_between_pictures(digits: Examples) -> None:
    """One generator state gives one jitter; equal pictures in a batch are jittered differently."""
    same = digits.images[:1].expand(4, 1, 8, 8)
    once, again = (jittered(same, stream(0, "jitter")) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == same.shape
    assert once.min() >= 0
    assert once.max() <= 16
    assert len({image.numpy().tobytes() for image in once}) == 4
