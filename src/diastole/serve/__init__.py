"""The HTTP server: the OpenAI API, health, metrics and tokenisation in front of a backend."""
