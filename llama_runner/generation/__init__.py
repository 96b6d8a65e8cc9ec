"""One generation: as a whole answer, or as a stream of chunks."""
