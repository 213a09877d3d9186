"""What went wrong in a training: stated rules about its course, and what more data would do."""
