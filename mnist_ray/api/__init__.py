"""What the launcher does, for Python: mnist_ray's public names.

May import every room but cli; imports neither torch nor ray until a call needs them.
"""
