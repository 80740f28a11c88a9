"""Networks on a split: predictions, metrics, tables."""
