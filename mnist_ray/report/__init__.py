"""Reports, from the tables of a committed evaluation alone."""
