"""Plain networks, and stacks of them."""
