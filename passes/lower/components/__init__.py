"""Component code: the body of a region as straight-line code over the numbers of a row, many rows side by side."""
