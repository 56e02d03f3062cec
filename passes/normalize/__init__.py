"""One way to say a thing: masks, means, overwrites and rows named by number become pointers, sums and comparisons."""
