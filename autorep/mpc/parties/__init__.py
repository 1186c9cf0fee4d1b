"""A process per party under a real engine. Only this folder needs spu."""
