"""The HTTP API: those of A1111 and OpenAI, health and metrics."""
