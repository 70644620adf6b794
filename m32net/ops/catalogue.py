"""What the named figures mean: the HELP text of each on ``/metrics``, and its name there.

Rooms name their figures in passing; here each gets the name, unit and explanation under which
Prometheus and people know it.  A name may carry labels in Prometheus' own notation, such as
``http_connections_refused_total{reason="full"}``.  A figure that is not listed is still shown;
``tests/interop/test_monitoring.py`` complains of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

PREFIX: Final = "m32net_"

TOTALS: Final[Mapping[str, str]] = {
    "frames": "rtp_frames_sent_total",
    "packets": "rtp_packets_sent_total",
    "octets": "rtp_payload_bytes_sent_total",
    "dropped": "rtp_packets_dropped_total",
    "unsendable": "rtp_frames_unsendable_total",
    "connections": "control_sessions_total",
    "refused": "listeners_refused_total",
    "sent_away": "listeners_sent_away_total",
    "malformed_messages": "control_messages_malformed_total",
    "foreign_reports": "foreign_reports_total",
}
"""Counters of ``IListeners.totals()`` by their names on ``/metrics``."""

HELP: Final[Mapping[str, str]] = {
    # streaming
    "rtp_frames_sent_total": "Frames sent to their listeners, over all formats.",
    "rtp_packets_sent_total": "RTP packets the kernel took.",
    "rtp_payload_bytes_sent_total": "Payload of these packets, without RTP, UDP and IP headers.",
    "rtp_packets_dropped_total": "RTP packets the kernel did not take; they are not sent again.",
    "rtp_frames_unsendable_total": "Frames that could not be laid out for their listeners.",
    "control_sessions_total": "Control sessions (WebSocket) since the start.",
    "listeners_refused_total": "Listeners turned away because the server was full.",
    "listeners_sent_away_total": "Listeners sent on to the server that all are moved to.",
    "wrong_pins_total": "Listeners that gave a wrong PIN, or none.",
    "control_messages_malformed_total": "Control messages that could not be understood.",
    "foreign_reports_total": "RTCP reports about streams that were not sent to that address.",
    "send_seconds_p50": "From a frame's last sample to its last datagram: median, last frames.",
    "send_seconds_p99": "From a frame's last sample to its last datagram: 99th percentile.",
    # audio
    "source_lost": "1 while the audio device is gone, else 0.",
    "capture_overruns_total": "Times that captured samples were lost before they were encoded.",
    "capture_samples_lost_total": "Samples lost that way, per channel.",
    "frames_encoded_total": "Frames encoded, over all formats.",
    "frames_late_total": "Batches of frames that reached the event loop more than 20 ms late.",
    "frames_dropped_total": "Encoded frames dropped because the event loop was too late.",
    "encode_seconds": "Time to encode one frame in all formats in use, smoothed.",
    "encoders_active": "Mono Opus encoders in use.",
    "last_frame_age_seconds": "Since a frame was last sent; 0 while nobody listens.",
    # the process
    "event_loop_lag_p50_seconds": "How late the event loop came: median of the last minute.",
    "event_loop_lag_p99_seconds": "How late the event loop came: 99th percentile, last minute.",
    "event_loop_lag_max_seconds": "How late the event loop came: worst of the last minute.",
    "state_disk_free_bytes": "Room on the disk of the state directory.",
    "state_disk_size_bytes": "Size of the disk of the state directory.",
    "log_lines_total": "Lines logged as warning or worse, by room and level.",
    # store
    "store_writes_resting": "1 while writing is not tried because it failed repeatedly, else 0.",
    "store_writes_refused_total": "Changes refused because writing rests.",
    "history_rows_waiting": "Rows of quality and event history that wait to be written.",
    "history_rows_dropped_total": "Rows of history thrown away because they could not be written.",
    # trust
    "certificate_expiry_seconds": "Until the server's certificate expires; negative afterwards.",
    "certificates_issued_total": "Server certificates made by the local CA.",
    # connections
    "control_connections": "WebSockets open now.",
    "control_messages_received_total": "Control messages received, of all sessions.",
    "control_messages_sent_total": "Control messages sent, to all sessions.",
    "control_bytes_received_total": "Bytes received over WebSockets, as on the wire without TLS.",
    "control_bytes_sent_total": "Bytes sent over WebSockets, as on the wire without TLS.",
    "control_sessions_abusive_total": "WebSockets closed for what was sent, by close code.",
    "http_connections": "TCP connections open now, WebSockets included.",
    "http_connections_accepted_total": "TCP connections admitted.",
    "http_connections_refused_total": "TCP connections refused, by reason.",
    "http_connections_untold_total": "TCP connections refused without a word, by a reset.",
    "http_requests_late_total": "HTTP connections ended because no request came in time.",
    "http_requests_refused_total": "Requests refused: too slow, too large or too many, by status.",
    "http_addresses_blocked": "Addresses shut out now, for opening too many connections.",
    "http_addresses_blocked_total": "Addresses shut out since the start.",
    "http_bytes_received_total": "Bytes received on TCP connections, TLS included.",
    "http_bytes_sent_total": "Bytes sent on TCP connections, TLS included.",
    # level meters
    "meter_subscribers": "Control sessions that are shown levels.",
    "meter_messages_total": "Messages with levels sent.",
    "levels_dropped_total": "Levels of 50 ms dropped because the event loop was too late.",
    "meter_messages_skipped_total": "Messages with levels not sent to sessions with a queue.",
}

ERRORS: Final[Mapping[str, str]] = {
    "rtp_packets_dropped_total": "packets_dropped",
    "rtp_frames_unsendable_total": "frames_unsendable",
    "control_messages_malformed_total": "malformed_messages",
    "control_sessions_abusive_total": "sessions_abusive",
    "foreign_reports_total": "foreign_reports",
    "listeners_refused_total": "server_full",
    "wrong_pins_total": "wrong_pins",
    "capture_overruns_total": "capture_overruns",
    "frames_dropped_total": "frames_dropped",
    "frames_late_total": "frames_late",
    "http_requests_late_total": "requests_late",
    "http_requests_refused_total": "requests_refused",
    "store_writes_refused_total": "writes_refused",
    "history_rows_dropped_total": "history_dropped",
    "http_connections_refused_total": "connections_refused",
}
"""Counters that are also found under ``m32net_errors_total``, by kind."""

_FIGURE: Final = re.compile(r"([^{]*)(?:\{(.*)\})?", re.DOTALL)
_LABEL: Final = re.compile(r'([A-Za-z_]\w*)="([^"]*)"', re.ASCII)

Labels = tuple[tuple[str, str], ...]


def word(name: str) -> str:
    """A metric name of letters, digits and underscores."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()


def split(figure: str) -> tuple[str, Labels]:
    """The name of a figure and its labels, in the order they were given."""
    match = _FIGURE.fullmatch(figure)
    if match is None:
        return word(figure), ()
    return word(match.group(1)), tuple(_LABEL.findall(match.group(2) or ""))


def families(figures: Iterable[tuple[str, float]]) -> Iterator[Metric]:
    """Named figures as metric families.

    Figures of one name are one family; a name given twice with the same labels counts once, the
    last.  Values that are no finite numbers are left out.
    """
    found: dict[str, dict[Labels, float]] = {}
    for figure, value in figures:
        name, labels = split(figure)
        if name and math.isfinite(value):
            found.setdefault(name, {})[labels] = value
    for name, samples in found.items():
        # A family has one set of label names; what lacks one has it empty, as Prometheus sees it.
        label_names = list(dict.fromkeys(key for labels in samples for key, _value in labels))
        text = HELP.get(name, name.replace("_", " ").capitalize() + ".")
        family: CounterMetricFamily | GaugeMetricFamily
        if name.endswith("_total"):
            family = CounterMetricFamily(
                PREFIX + name.removesuffix("_total"), text, labels=label_names
            )
        else:
            family = GaugeMetricFamily(PREFIX + name, text, labels=label_names)
        for labels, value in samples.items():
            given = dict(labels)
            family.add_metric([given.get(key, "") for key in label_names], value)
        yield family


def errors(figures: Iterable[tuple[str, float]]) -> Metric:
    """The counters of what went wrong, by kind, in one family."""
    sums = dict.fromkeys(ERRORS.values(), 0.0)
    for figure, value in figures:
        kind = ERRORS.get(split(figure)[0])
        if kind is not None:
            sums[kind] += value
    family = CounterMetricFamily(
        f"{PREFIX}errors",
        "What went wrong, by kind; most kinds have a counter of their own too.",
        labels=["kind"],
    )
    for kind, value in sums.items():
        family.add_metric([kind], value)
    return family
