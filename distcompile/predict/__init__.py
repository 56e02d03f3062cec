"""Memory, messages and time of a program that has not run: `account` counts them, the others ask it."""
