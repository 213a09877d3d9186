"""Serves `tasks.decode`: reads the rows of archives, and writes them as a split or as one of its parts."""
