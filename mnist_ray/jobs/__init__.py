"""The work behind the commands, with or without Ray."""
