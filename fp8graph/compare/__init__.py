"""Floor 7: how far two models lie apart."""
