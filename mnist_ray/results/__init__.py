"""Reads and writes the folders, documents and tables of a storage."""
