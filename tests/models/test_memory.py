from mnist_ray.config.variants import variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.models.memory import bytes_of_run


def test_an_mlp_takes_its_weights_four_times_and_its_activations() -> None:
    config = variant_config("baseline", {"global_batch_size": 64})
    num_weights = 784 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    # The images, flattened too, and each hidden layer with its ReLU and dropout.
    outputs = 784 + 784 + 3 * 128 + 3 * 64 + 10
    # Training at batch 64, so at most 71, with its backward pass, and one image that is validated.
    expected = 4 * (4 * num_weights + 4 * 71 * outputs + 3 * 784)
    assert bytes_of_run(config, MNIST_SHAPE, num_classes=10, validation_batch=1) == expected
    doubled = config.model_copy(update={"precision": "float64"})
    assert bytes_of_run(doubled, MNIST_SHAPE, num_classes=10, validation_batch=1) == 2 * expected


def test_a_cnn_takes_as_much_again_when_many_images_are_validated_at_once() -> None:
    config = variant_config("cnn")
    few, many = (bytes_of_run(config, MNIST_SHAPE, num_classes=10, validation_batch=count) for count in (1, 1025))
    assert many - few == 4 * 3 * 1024 * 32 * 28 * 28
