"""The rows that each rank owns, the rows that it reads, and its part of every value."""
