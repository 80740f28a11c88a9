"""Networks and stacks of networks.

May import results and every room below it.
"""
