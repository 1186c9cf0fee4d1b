"""The command line of both scripts."""
