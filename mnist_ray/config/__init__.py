"""Settings and their sources.

May import data, optimizers, noise, and every room below them; no torch.
"""
