"""Systems that stand beside the two of the book: their measures, on any network (Part III)."""
