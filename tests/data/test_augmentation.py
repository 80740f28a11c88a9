import math

import pytest
import torch
from torch import Tensor

from mnist_ray.data import augmentation
from mnist_ray.data.augmentation import AUGMENTATIONS, Augmentation, augment, crop_and_flip
from mnist_ray.noise.random_streams import stream_key, uniform
from mnist_ray.noise.step_streams import SeededStreams

RANDOM = [name for name, settings in AUGMENTATIONS.items() if settings.distorts]


def blob(rows: int, *, width: int = 12, height: int = 4) -> Tensor:
    """A bright bar in the middle of dark pictures, float64 [1, rows, 1, 28, 28]."""
    picture = torch.zeros(28, 28, dtype=torch.float64)
    top, left = 14 - height // 2, 14 - width // 2
    picture[top : top + height, left : left + width] = 1.0
    return picture.expand(1, rows, 1, 28, 28).contiguous()


def noise(runs: int, rows: int) -> Tensor:
    return torch.rand(runs, rows, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def centers(pictures: Tensor) -> Tensor:
    """Centers of mass in pixels from the middle, to the right and down, [rows, 2]."""
    pixels = pictures.flatten(0, 2)
    place = torch.arange(28, dtype=torch.float64) - 13.5
    mass = pixels.sum((1, 2))
    return torch.stack(((pixels.sum(1) @ place) / mass, (pixels.sum(2) @ place) / mass), 1)


def draws(seed: int, step: int, rows: int) -> Tensor:
    """What the six affine settings of each row are multiplied with, in [-1, 1)."""
    return 2 * uniform([stream_key(seed, "affine", step)], torch.arange(rows), 6)[0] - 1


def test_no_augmentation_gives_back_the_images_themselves() -> None:
    images = noise(1, 4)
    assert augment("none", images, streams=SeededStreams([0], 0), rows=torch.arange(4)) is images


@pytest.mark.parametrize("name", RANDOM)
def test_seed_step_and_row_decide_and_nothing_else(name: str) -> None:
    images, rows = noise(1, 1).expand(1, 8, 1, 28, 28), torch.arange(8)
    first = augment(name, images, streams=SeededStreams([0], 3), rows=rows)
    torch.manual_seed(99)
    assert torch.equal(augment(name, images, streams=SeededStreams([0], 3), rows=rows), first)
    other_seed = augment(name, images, streams=SeededStreams([1], 3), rows=rows)
    other_step = augment(name, images, streams=SeededStreams([0], 4), rows=rows)
    pictures = [*first[0], *other_seed[0], *other_step[0]]
    assert len({tuple(picture.flatten().tolist()) for picture in pictures}) == 24


@pytest.mark.parametrize("name", RANDOM)
def test_a_rank_distorts_its_rows_as_the_whole_batch_would(name: str) -> None:
    images, rows = noise(1, 13), torch.arange(13)
    whole = augment(name, images, streams=SeededStreams([5], 2), rows=rows)
    for rank in range(3):
        part = augment(name, images[:, rank::3], streams=SeededStreams([5], 2), rows=rows[rank::3])
        assert torch.equal(part, whole[:, rank::3])


@pytest.mark.parametrize("name", RANDOM)
def test_a_rank_without_rows_has_nothing_to_distort(name: str) -> None:
    images = noise(1, 0)
    assert augment(name, images, streams=SeededStreams([0], 0), rows=torch.arange(0)).shape == (1, 0, 1, 28, 28)


@pytest.mark.parametrize("name", RANDOM)
def test_each_run_of_a_stack_is_distorted_as_it_would_be_alone(name: str) -> None:
    images, rows = noise(3, 4), torch.arange(4)
    together = augment(name, images, streams=SeededStreams([4, 5, 6], 1), rows=rows)
    for run, seed in enumerate([4, 5, 6]):
        assert torch.equal(
            augment(name, images[run : run + 1], streams=SeededStreams([seed], 1), rows=rows)[0], together[run]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RANDOM)
def test_shape_type_and_range_of_the_pixels_stay(name: str, dtype: torch.dtype) -> None:
    images = noise(2, 5).to(dtype)
    distorted = augment(name, images, streams=SeededStreams([0, 1], 0), rows=torch.arange(5))
    assert distorted.shape == images.shape
    assert distorted.dtype == dtype
    assert 0 <= float(distorted.min()) <= float(distorted.max()) <= 1


def test_a_shift_moves_the_picture_by_its_draw_and_keeps_its_ink() -> None:
    shifted = augment("shift", blob(200), streams=SeededStreams([0], 0), rows=torch.arange(200))
    torch.testing.assert_close(shifted.sum((2, 3, 4)), torch.full((1, 200), 48.0, dtype=torch.float64))
    # Sampling two pixels further to the right moves the picture two pixels to the left.
    torch.testing.assert_close(centers(shifted), -2 * draws(0, 0, 200)[:, 4:], rtol=0, atol=1e-9)
    assert 1.9 < float(centers(shifted).abs().max()) < 2.0


def test_what_comes_in_from_outside_is_the_edge() -> None:
    images = torch.full((1, 50, 1, 28, 28), 0.25)
    for name in RANDOM:
        distorted = augment(name, images, streams=SeededStreams([0], 0), rows=torch.arange(50))
        torch.testing.assert_close(distorted, images)


def test_a_rotation_turns_a_bar_by_its_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUGMENTATIONS, "rotation", Augmentation(rotation=30.0))
    turned = augment("rotation", blob(100, width=16, height=2), streams=SeededStreams([0], 0), rows=torch.arange(100))
    pixels = turned.flatten(0, 2)
    place = torch.arange(28, dtype=torch.float64) - 13.5
    xx = (pixels.sum(1) @ place.square()) / pixels.sum((1, 2))
    yy = (pixels.sum(2) @ place.square()) / pixels.sum((1, 2))
    xy = ((pixels @ place) @ place) / pixels.sum((1, 2))
    # The direction of the longest axis; rows count downwards, so a positive angle is counterclockwise with a minus.
    degrees = torch.rad2deg(0.5 * torch.atan2(-2 * xy, xx - yy))
    torch.testing.assert_close(degrees, 30 * draws(0, 0, 100)[:, 0], rtol=0, atol=1.0)
    assert 28 < float(degrees.abs().max()) < 31
    torch.testing.assert_close(centers(turned), torch.zeros(100, 2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_scaling_changes_the_area_by_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUGMENTATIONS, "scale", Augmentation(scale=0.2))
    scaled = augment("scale", blob(100, height=12), streams=SeededStreams([0], 0), rows=torch.arange(100))
    factors = 1 + 0.2 * draws(0, 0, 100)[:, 1:3]
    torch.testing.assert_close(scaled.sum((2, 3, 4))[0], 144 / factors.prod(1), rtol=0.03, atol=0)


def test_a_shear_slants_a_bar_and_keeps_its_area(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUGMENTATIONS, "shear", Augmentation(shear=0.3))
    slanted = augment("shear", blob(100, width=4, height=12), streams=SeededStreams([0], 0), rows=torch.arange(100))
    torch.testing.assert_close(slanted.sum((2, 3, 4))[0], torch.full((100,), 48.0, dtype=torch.float64))
    # The center of each row lies on a line: x = -tangent * y.
    place = torch.arange(28, dtype=torch.float64) - 13.5
    pixels = slanted.flatten(0, 2)
    middle = (pixels[:, 9:19] @ place) / pixels[:, 9:19].sum(2)
    slopes = (middle @ place[9:19]) / place[9:19].square().sum()
    torch.testing.assert_close(slopes, -0.3 * draws(0, 0, 100)[:, 3], rtol=0, atol=1e-6)


def test_elastic_displacements_have_the_stated_deviation_everywhere_and_no_drift() -> None:
    settings = Augmentation(elastic=0.8)
    field = (
        augmentation._elastic_field(settings, SeededStreams([0], 0), rows=torch.arange(4000), height=28, width=28) * 14
    )
    assert field.shape == (4000, 28, 28, 2)
    assert float(field.std()) == pytest.approx(0.8, rel=0.01)
    deviations = field.std(0)
    assert 0.76 < float(deviations.min()) < float(deviations.max()) < 0.84
    # Four standard errors of the mean of 4,000 draws.
    assert float(field.mean(0).abs().max()) < 5 * 0.8 / math.sqrt(4000)


def test_elastic_displacements_are_smooth_and_differ_between_the_axes() -> None:
    field = (
        augmentation._elastic_field(
            Augmentation(elastic=1.0), SeededStreams([0], 0), rows=torch.arange(500), height=28, width=28
        )
        * 14
    )
    assert float((field[:, 1:] - field[:, :-1]).std()) < 0.25
    assert float((field[:, :, 1:] - field[:, :, :-1]).std()) < 0.25
    correlation = (field[..., 0] * field[..., 1]).mean() / (field[..., 0].std() * field[..., 1].std())
    assert abs(float(correlation)) < 0.1


def test_elastic_distortion_changes_a_picture_but_not_beyond_recognition() -> None:
    pictures = blob(50)
    distorted = augment("elastic", pictures, streams=SeededStreams([0], 0), rows=torch.arange(50))
    assert float((distorted - pictures).abs().amax((2, 3, 4)).min()) > 0.1
    overlap = (distorted * pictures).sum((2, 3, 4)) / 48
    assert float(overlap.min()) > 0.4
    assert float(overlap.mean()) > 0.7


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 40, 24), (3, 1, 9), (2, 9, 1), (1, 1, 1)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_of_any_shape_are_distorted_alike_in_all_channels(name: str, shape: tuple[int, ...]) -> None:
    picture = torch.rand(1, 6, 1, *shape[1:], generator=torch.Generator().manual_seed(0))
    images = picture.expand(1, 6, *shape).contiguous()
    streams, rows = SeededStreams([3], 1), torch.arange(6)
    distorted = augment(name, crop_and_flip(name, images, streams=streams, rows=rows), streams=streams, rows=rows)
    assert distorted.shape == images.shape
    assert torch.isfinite(distorted).all()
    assert torch.equal(distorted, distorted[:, :, :1].expand_as(distorted))


@pytest.mark.parametrize(("height", "width"), [(28, 28), (40, 20)])
def test_a_rotation_keeps_angles_and_lengths_in_an_image_that_is_no_square(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    monkeypatch.setitem(AUGMENTATIONS, "rotation", Augmentation(rotation=30.0))
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in (height, width))
    cone = (1 - (x[None, :].square() + y[:, None].square()).sqrt() / 9).clamp(0)
    images = cone.expand(1, 20, 1, height, width).contiguous()
    turned = augment("rotation", images, streams=SeededStreams([0], 0), rows=torch.arange(20))
    # A cone looks the same, however it is turned; if the sides' ratio is forgotten, it is an ellipse.
    assert float((turned - images).abs().max()) < 0.1


def test_a_crop_is_one_of_81_places_on_black_and_half_of_the_images_are_mirrored() -> None:
    image = torch.arange(1, 1 + 3 * 8 * 6, dtype=torch.uint8).view(3, 8, 6)
    images = image.expand(1, 2000, 3, 8, 6).contiguous()
    cropped = crop_and_flip("crop_flip", images, streams=SeededStreams([0], 0), rows=torch.arange(2000))[0]
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    places = {
        (down, right, flip): (padded[:, down : down + 8, right : right + 6].flip(-1) if flip else
                              padded[:, down : down + 8, right : right + 6])
        for down in range(9) for right in range(9) for flip in (False, True)
    }  # fmt: skip
    seen = {value.numpy().tobytes(): place for place, value in places.items()}
    found = [seen[one.contiguous().numpy().tobytes()] for one in cropped]
    assert len({place[:2] for place in found}) == 81
    assert 900 < sum(flip for *_, flip in found) < 1100
    assert cropped.dtype == torch.uint8


def test_a_crop_draws_by_seed_step_and_row_and_each_run_of_a_stack_as_alone() -> None:
    images, rows = noise(3, 9), torch.arange(9)

    def crop(seeds: list[int], some: Tensor, step: int = 2, of: Tensor = rows) -> Tensor:
        return crop_and_flip("crop_flip", some, streams=SeededStreams(seeds, step), rows=of)

    together = crop([4, 5, 6], images)
    for run, seed in enumerate((4, 5, 6)):
        assert torch.equal(crop([seed], images[run : run + 1])[0], together[run])
    assert torch.equal(crop([4, 5, 6], images[:, 1::3], of=rows[1::3]), together[:, 1::3])
    assert not torch.equal(crop([4, 5, 6], images, step=3), together)
    assert crop([4], images[:1, :0], of=rows[:0]).shape == (1, 0, 1, 28, 28)
    assert crop_and_flip("affine", images, streams=SeededStreams([4, 5, 6], 0), rows=rows) is images
