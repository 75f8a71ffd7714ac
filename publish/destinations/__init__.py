"""Where published assignments go, one module each."""
