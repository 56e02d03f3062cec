"""What runs when: blocks of rows, what is stored between them, messages that travel meanwhile."""
