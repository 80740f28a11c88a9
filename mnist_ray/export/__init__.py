"""Weights in other formats, with a model card."""
