"""Two processes under a real engine. Only this folder needs spu."""
