"""Random streams that depend only on a run's config."""
