"""m32net: personal monitoring over Wi-Fi for the Midas M32 and Behringer X32.

The application on top of :mod:`protocols`.  One room (package) per concern; a room's door is its
``service`` module, and :mod:`m32net.server` is the only module that knows them all.
"""

__version__ = "0.1.0"
