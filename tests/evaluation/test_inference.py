import pytest
import torch
from torch import Tensor, nn

from mnist_ray.config.variants import variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.evaluation.inference import log_probabilities
from mnist_ray.models.networks import make_network

CPU = torch.device("cpu")
MNIST = (0.1307, 0.3081)
OTHER = (0.5, 0.25)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (37, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network(variant: str, **settings: object) -> nn.Sequential:
    return make_network(variant_config(variant, settings), MNIST_SHAPE, 10).eval()


def scores(networks: list[nn.Sequential], images: Tensor, *normalizations: tuple[float, float]) -> Tensor:
    return log_probabilities(networks, images, normalizations=normalizations, batch_size=16, device=CPU)


@pytest.mark.parametrize("variant", ["baseline", "dropout_batchnorm", "cnn"])
def test_it_gives_what_the_plain_network_gives_on_all_images_at_once(variant: str, images: Tensor) -> None:
    plain = network(variant)
    with torch.no_grad():
        expected = plain((images.double().div(255).sub(0.1307) / 0.3081).float()).softmax(-1).log()
    result = scores([plain], images, MNIST)
    assert result.shape == (1, 37, 10)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[0], expected, rtol=1e-5, atol=1e-5)


def test_a_network_gives_the_same_bits_alone_and_among_others(images: Tensor) -> None:
    networks = [network("baseline"), network("dropout_batchnorm", seed=1), network("cnn"), network("dropout", seed=2)]
    normalizations = [MNIST, OTHER, MNIST, OTHER]
    together = scores(networks, images, *normalizations)
    alone = [
        scores([one], images, normalization)[0] for one, normalization in zip(networks, normalizations, strict=True)
    ]
    assert torch.equal(together, torch.stack(alone))


def test_each_network_sees_the_images_in_its_own_normalization(images: Tensor) -> None:
    plain = network("dropout_batchnorm")
    result = scores([plain, plain], images, MNIST, OTHER)
    assert not torch.allclose(result[0], result[1], atol=1e-3)


def test_a_float64_network_keeps_its_precision_beside_a_float32_one(images: Tensor) -> None:
    wide, narrow = network("baseline", precision="float64"), network("baseline")
    result = scores([wide, narrow], images, MNIST, MNIST)
    assert result.dtype == torch.float64
    assert torch.equal(result[0], scores([wide], images, MNIST)[0])
    assert torch.equal(result[1].float(), scores([narrow], images, MNIST)[0])


def test_the_probabilities_of_an_image_add_up_to_one(images: Tensor) -> None:
    total = scores([network("dropout_batchnorm")], images, MNIST).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(1, 37))


def test_the_images_stay_as_they_are(images: Tensor) -> None:
    before = images.clone()
    scores([network("baseline")], images, MNIST)
    assert torch.equal(images, before)
