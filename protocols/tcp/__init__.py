"""TCP connections that hold: options of their sockets, and who may open how many (CON-1, CON-30).

``options`` and ``admission`` are cores: values and decisions, without sockets or clocks.
``protocol`` is the shell that puts them in force on a Twisted reactor's listening ports.
"""
