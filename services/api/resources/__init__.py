"""One resource a file. Each responder declares what it needs by ``auth.requires``."""
