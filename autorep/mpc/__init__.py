"""Private inference of a frozen network under a real two-party engine. Only export.py imports torch."""
