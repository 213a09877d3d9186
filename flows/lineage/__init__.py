"""What models and archives were made from, and what was made from them: the operation behind `idxflow lineage`."""
