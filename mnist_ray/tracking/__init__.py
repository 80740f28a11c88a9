"""Reports progress to trackers and to the terminal."""
