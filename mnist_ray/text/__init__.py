"""Printed text: escaping, tables, suggestions.

May import errors and interruption.
"""
