"""Make a run again from what it has recorded, in a scratch store, and compare every digest: `idxflow reproduce`."""
