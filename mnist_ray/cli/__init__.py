"""The command line: options to a job, and what a person reads of it."""
