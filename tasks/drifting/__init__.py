"""Whether new images differ from those that a champion was trained on."""
