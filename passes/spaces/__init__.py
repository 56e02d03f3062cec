"""Which dimension of which value counts the rows of which index space, and which rank owns a row."""
