"""The checks of splits in parts: what is worked out for each part, and put together for all of them."""
