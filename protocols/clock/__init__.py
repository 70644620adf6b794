"""Clocks on the wire: NTP-style exchanges over the control session; PTP joins here."""
