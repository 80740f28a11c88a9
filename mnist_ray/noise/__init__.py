"""Random streams that depend on nothing but a run's config."""
