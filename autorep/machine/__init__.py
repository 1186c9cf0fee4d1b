"""The computer: devices, processes, files, signals."""
