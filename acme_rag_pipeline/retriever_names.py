"""What a search may be asked to search with. Apart from the retriever itself, whose import costs a command line seconds."""

RETRIEVERS = ("promoted", "bm25", "base", "base_hybrid", "fine_tuned", "fine_tuned_hybrid")
