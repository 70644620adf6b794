"""Being found: mDNS and QR codes."""
