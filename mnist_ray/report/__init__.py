"""Reports, made only from the tables of a committed evaluation."""
