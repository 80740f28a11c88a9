"""Data sets by name and the user's own, augmentation, polarity; may import storage, text and errors."""
