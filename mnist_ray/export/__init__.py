"""Weights in other formats, with a model card.

May import evaluation and every room below it, not report.
"""
