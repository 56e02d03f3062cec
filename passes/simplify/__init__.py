"""Less to compute for the same result, whatever it is divided among."""
