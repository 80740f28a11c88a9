"""Statistics on arrays and rows; no storage, no torch."""
