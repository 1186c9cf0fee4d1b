"""Private inference of a frozen network under a real engine. Only export/ imports torch, only parties/ the engine."""
