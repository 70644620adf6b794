"""The listener: a client library that knows the server only by its documented interfaces."""
