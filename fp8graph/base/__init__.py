"""Floor 0: errors, codes, documents, files, names and progress. Standard library only."""
