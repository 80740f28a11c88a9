"""Random streams that depend only on a run's config.

May import storage and every room below it, not optimizers.
"""
