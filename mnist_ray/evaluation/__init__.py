"""Evaluates networks on a split: predictions, metrics, tables."""
