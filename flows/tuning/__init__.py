"""Studies: what `idxflow tune` and the flow `tune` carry out."""
