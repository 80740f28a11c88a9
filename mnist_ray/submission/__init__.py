"""Commands that run on somebody's cluster."""
