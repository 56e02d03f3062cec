"""Programs, and how far work has come, as text for people."""
