"""Statistics on arrays and rows; reads no storage, uses no torch.

May import models and every room below it, not training.
"""
