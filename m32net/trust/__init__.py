"""Certificates: the local CA, this server's own, and who else is a server of ours (CON-32)."""
