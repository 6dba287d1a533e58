"""Random changes of training images."""

from __future__ import annotations

import torch

from lorita_deploy.records import Augmentation
from lorita_deploy.train.augment import CHANGES, augment
from lorita_deploy.train.datasets import ON_PHOTOS

ALL: tuple[Augmentation, ...] = tuple(CHANGES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augmentation_moves_and_mirrors_whole_images() -> None:
    images = torch.zeros(400, 2, 16, 16, dtype=torch.uint8)
    images[:, 0, 8, 5], images[:, 1, 8, 5] = 100, 200
    mirrored = augment(images, ("flip",), torch.Generator().manual_seed(0))
    columns = mirrored[:, 0].flatten(1).argmax(1) % 16
    assert set(columns.tolist()) == {5, 10}
    assert 150 < int((columns == 10).sum()) < 250
    moved = augment(images, ("crop",), torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    place = moved[:, 0].flatten(1).argmax(1)
    assert torch.equal(place, moved[:, 1].flatten(1).argmax(1))  # all channels alike
    assert set((place // 16).tolist()) == set(range(6, 11))
    assert set((place % 16).tolist()) == set(range(3, 8))
    assert torch.equal(moved.flatten(1).sum(1), images.flatten(1).sum(1))
    again = augment(images, ("crop",), torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
    assert augment(images, (), torch.Generator()) is images


def test_a_part_of_a_batch_changes_as_it_does_in_the_batch() -> None:
    images = torch.randint(256, (10, 1, 16, 16), dtype=torch.uint8)
    whole = augment(images, ALL, torch.Generator().manual_seed(3))
    for rank in range(3):
        part = slice(rank, None, 3)
        found = augment(images[part], ALL, torch.Generator().manual_seed(3), of=10, part=part)
        assert torch.equal(found, whole[part])


def test_every_change_is_offered_for_photos() -> None:
    assert set(ON_PHOTOS) == set(ALL)


def test_zooming_enlarges_a_part_of_the_image_without_turning_or_mirroring_it() -> None:
    columns = torch.arange(32, dtype=torch.uint8).mul(8).expand(500, 2, 32, 32)
    found = augment(columns, ("zoom",), seeded())
    assert found.shape == columns.shape
    assert found.dtype == torch.uint8
    assert torch.equal(found[:, 0], found[:, 1])  # all channels alike
    assert torch.equal(found[:, :, :1].expand_as(found), found)  # still the same in every row
    first, last = found[:, 0, 0, 0].float(), found[:, 0, 0, -1].float()
    shares = (last - first) / (31 * 8)  # how much of the width is seen
    assert 0.25**0.5 * 0.75**0.5 - 0.05 < float(shares.min()) < 0.5
    assert float(shares.max()) > 0.95
    assert float(first.min()) < 10
    assert float(last.max()) > 240
    heights = augment(columns.mT.contiguous(), ("zoom",), seeded())[:, 0, :, 0].float()
    areas = shares * (heights[:, -1] - heights[:, 0]) / (31 * 8)
    assert 0.2 < float(areas.min()) < 0.35
    assert 0.55 < float(areas.mean()) < 0.7


def test_a_constant_image_stays_one_when_it_is_zoomed() -> None:
    images = torch.full((20, 3, 9, 14), 77, dtype=torch.uint8)
    assert torch.equal(augment(images, ("zoom",), seeded()), images)


def test_erasing_blackens_one_square_that_the_edge_may_cut() -> None:
    images = torch.full((500, 2, 16, 16), 9, dtype=torch.uint8)
    black = augment(images, ("erase",), seeded()) == 0
    assert torch.equal(black[:, 0], black[:, 1])
    rows, columns = black[:, 0].any(2).sum(1), black[:, 0].any(1).sum(1)
    assert torch.equal(black[:, 0].flatten(1).sum(1), rows * columns)  # a rectangle, filled
    assert (int(rows.min()), int(rows.max())) == (int(columns.min()), int(columns.max())) == (4, 8)
    assert bool(black[:, 0].any(0).all())  # no place is spared


def test_changes_come_in_the_order_of_the_recipe() -> None:
    images = torch.full((64, 1, 16, 16), 9, dtype=torch.uint8)
    erased_last = augment(images, ("zoom", "erase"), seeded(1))
    assert torch.equal(erased_last[erased_last != 0], torch.full_like(erased_last[erased_last != 0], 9))
    assert not torch.equal(erased_last, augment(images, ("erase", "zoom"), seeded(1)))
