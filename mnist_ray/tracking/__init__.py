"""Progress for trackers and for the terminal."""
