"""Printed text: escaping, tables, suggestions."""
