"""Who computes the parts of a step: this process, or processes on this machine and others."""
