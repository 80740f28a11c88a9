"""What a command does, with or without Ray."""
