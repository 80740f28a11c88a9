"""Networks and stacks of networks."""
