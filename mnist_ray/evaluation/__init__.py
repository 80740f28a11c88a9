"""Evaluates networks on a split: predictions, metrics, tables.

May import analysis, training, and every room below them.
"""
