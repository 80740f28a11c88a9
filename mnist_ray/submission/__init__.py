"""Submits commands to an existing cluster.

May import cluster and every room below it; no torch.
"""
