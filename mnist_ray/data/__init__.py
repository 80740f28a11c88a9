"""Named data sets and the user's own data, augmentation, polarity.

May import optimizers, noise, storage, and every room below them.
"""
