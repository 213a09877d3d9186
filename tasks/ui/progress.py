"""The progress of long work, where the steps report it and the command line listens."""

from storage.runtime.progress import Listener, Progress, advance, listening, working

__all__ = ["Listener", "Progress", "advance", "listening", "working"]
