"""Which rank owns which row, which rows it reads, and its part of every value."""
