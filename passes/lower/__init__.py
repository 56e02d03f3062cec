"""Machine code for what runs block by block, and the place where it is kept."""
