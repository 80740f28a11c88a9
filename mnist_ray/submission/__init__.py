"""Submits commands to an existing cluster."""
