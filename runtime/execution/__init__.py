"""One evaluation: a graph object is checked and divided, every rank runs its part, results are put together."""
