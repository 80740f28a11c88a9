"""Which regularization helps an image classifier, by how much, and how sure one can be."""

__version__ = "0.1.0"
