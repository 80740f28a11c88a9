"""The division of an epoch's examples, and of images to evaluate, into batches."""

# A remainder below this share of a batch joins the batch before it.
SMALLEST_SHARE = 8
# Numbers in an image, up to which evaluation takes whole batches: 4 times those of MNIST, and 32x32 in colour.
_WHOLE_BATCH_VALUES = 4 * 784
_ROWS = 16


def batch_sizes(num_examples: int, global_batch_size: int) -> tuple[int, ...]:
    """Returns the sizes of an epoch's batches, the same for every run and any number of workers.

    All batches but the last have the global size. The remainder becomes a batch of its own, unless it is a single
    example or less than an eighth of a batch; then it joins the batch before. Batch normalization's running statistics
    weight all batches equally, so a small last batch, just before validation and checkpoint, would spoil them, and a
    single image has zero variance.
    """
    num_whole, rest = divmod(num_examples, global_batch_size)
    if not rest:
        return (global_batch_size,) * num_whole
    if num_whole and (rest == 1 or rest * SMALLEST_SHARE < global_batch_size):
        return (*(global_batch_size,) * (num_whole - 1), global_batch_size + rest)
    return (*(global_batch_size,) * num_whole, rest)


def largest_batch(global_batch_size: int) -> int:
    """Returns the largest possible size of a batch."""
    return global_batch_size + max((global_batch_size - 1) // SMALLEST_SHARE, int(global_batch_size > 1))


def images_at_once(batch_size: int, num_values: int) -> int:
    """Returns how many images of num_values numbers each go through a network at once in evaluation.

    That is batch_size or, so that memory stays bounded, for large images less in proportion: a multiple of 16 rows, see
    Stack._parts.
    """
    fit = batch_size * _WHOLE_BATCH_VALUES // num_values
    return min(batch_size, max(fit // _ROWS * _ROWS, _ROWS)) if fit < batch_size else batch_size
