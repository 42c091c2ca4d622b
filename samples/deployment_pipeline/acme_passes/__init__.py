"""Passes of one's own: each module holds one class, and is found by its name through the entry point."""
