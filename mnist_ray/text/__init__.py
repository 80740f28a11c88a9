"""What is printed: escaping, tables, suggestions."""
