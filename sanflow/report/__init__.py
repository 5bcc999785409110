"""Read finished runs; write tables and figures."""
