"""Reads and writes the folders, documents and tables of a storage.

May import grids and every room below it; columns.py and schemas.py use no torch.
"""
