"""Named data sets and the user's own data, augmentation, polarity; may import storage, text and errors."""
