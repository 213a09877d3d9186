"""What `idxflow serve` answers: the API for programs and the pages for people, in one FastAPI application."""
