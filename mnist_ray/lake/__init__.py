"""Committed evaluations as tables of a lakehouse, Iceberg or Delta, and the tables' contract.

May import results and every room below it; pyiceberg and deltalake (extra `lake`) inside functions only.
"""
