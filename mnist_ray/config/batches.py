"""How an epoch's examples are divided into batches."""

# A remainder below this share of a batch joins the batch before it.
SMALLEST_SHARE = 8


def batch_sizes(num_examples: int, global_batch_size: int) -> tuple[int, ...]:
    """Returns the sizes of an epoch's batches, the same for every run and any number of workers.

    All batches have the global size but the last. What remains after the whole batches is a batch of its own, unless
    it is a single example or less than an eighth of a batch: then it joins the batch before. Batch normalization
    takes each batch into its running statistics with the same weight, so the few images of a small last batch, just
    before validation and checkpoint, would spoil them; of a single image the variance is zero.
    """
    num_whole, rest = divmod(num_examples, global_batch_size)
    if not rest:
        return (global_batch_size,) * num_whole
    if num_whole and _is_too_small(rest, global_batch_size):
        return (*(global_batch_size,) * (num_whole - 1), global_batch_size + rest)
    return (*(global_batch_size,) * num_whole, rest)


def largest_batch(global_batch_size: int) -> int:
    """Returns the most examples that a batch may have."""
    return global_batch_size + max((global_batch_size - 1) // SMALLEST_SHARE, int(global_batch_size > 1))


def _is_too_small(num_examples: int, global_batch_size: int) -> bool:
    return num_examples == 1 or num_examples * SMALLEST_SHARE < global_batch_size
