"""The division of an epoch's examples into batches."""

# A remainder below this share of a batch joins the batch before it.
SMALLEST_SHARE = 8


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
