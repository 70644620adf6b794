"""Wire protocols of m32net, as a library of their own.

Every package here speaks bytes, events and explicit time; nothing in it knows audio devices,
databases or the m32net application, and nothing here imports :mod:`m32net`.  Cores do no I/O;
the Twisted shells live in each package's ``protocol`` module and in :mod:`protocols.datagram`.
"""
