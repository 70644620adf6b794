"""STR-8, STR-30, STR-31: the JSON of the control messages, its bounds, and any garbage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols.control import messages as m
from protocols.control.messages import MessageError, decode_client, decode_server, encode
from protocols.errors import LocalProtocolError, RemoteProtocolError

ROOT = Path(__file__).resolve().parents[3]

# What spec/streaming.md shows, word for word.
CLIENT_EXAMPLES = {
    '{"type":"heartbeat","timestamp":"2025-07-15T10:05:00Z"}': m.Heartbeat("2025-07-15T10:05:00Z"),
    '{"type":"client_config","payload":{"channels":[{"id":1,"name":"Vocal","mute":false}],'
    '"sample_rate":44100,"compression":"opus","layout":"bundle","udp_port":5004,"frame_ms":5}}': (
        m.ClientConfig(
            (m.ChannelRequest(1, "Vocal", False),),
            44100,
            compression="opus",
            layout="bundle",
            udp_port=5004,
            frame_ms=5,
        )
    ),
    '{"type":"ntp_request","t1":1721123456789}': m.NtpRequest(1721123456789),
    '{"type":"hello","payload":{"client_id":"abc","name":"Anna\'s phone","token":"tok"}}': (
        m.Hello("abc", "Anna's phone", "tok")
    ),
    '{"type":"hello","payload":{"pin":"0815"}}': m.Hello(pin="0815"),
    '{"type":"meters","payload":{"interval_ms":100}}': m.MetersRequest(100),
    '{"type":"bye","payload":{"reason":"migrated"}}': m.Bye("migrated"),
}
SERVER_EXAMPLES = {
    '{"type":"event","payload":{"type":"config_changed",'
    '"reason":"latency too high, lowering sample rate","new_sample_rate":32000}}': m.Event(
        "config_changed", "latency too high, lowering sample rate", new_sample_rate=32000
    ),
    '{"type":"ntp_response","t1":1721123456789,"t2":1721123456790,"t3":1721123456791}': (
        m.NtpResponse(1721123456789, 1721123456790, 1721123456791)
    ),
    '{"type":"welcome","payload":{"client_id":"c","session_token":"t","server":{"name":"n",'
    '"version":"v","role":"master"},"heartbeat_s":10}}': m.Welcome(
        "c", "t", m.ServerInfo("n", "v", "master"), 10
    ),
    '{"type":"stream","payload":{"client_id":"c","codec":"opus","sample_rate":48000,'
    '"clock_rate":48000,"frame_ms":5,"layout":"bundle","rtp_port":5004,"udp_port":5004,'
    '"sdp":"/sdp/c.sdp","groups":[{"ssrc":305419896,"payload_type":97,"udp_port":5004,'
    '"channels":[1,2,3]}]}}': m.Stream(
        *("c", "opus", 48000, 48000, 5, "bundle", 5004, 5004, "/sdp/c.sdp"),
        groups=(m.StreamGroup(305419896, 97, 5004, (1, 2, 3)),),
    ),
    '{"type":"error","payload":{"code":"bad_message","message":"no"}}': m.Error(
        "bad_message", "no"
    ),
    '{"type":"meters","payload":{"peak_db":[-12,-90,0]}}': m.Meters((-12, -90, 0)),
    '{"type":"meters","payload":{"peak_db":[-12,-60],"channels":[3,7]}}': (
        m.Meters((-12, -60), (3, 7))
    ),
    '{"type":"event","payload":{"type":"serverMigration","reason":"to the other machine",'
    '"new_host":"10.0.0.2","new_port":8080,"migrate_after":30.0},"event":"serverMigration",'
    '"data":{"new_host":"10.0.0.2","new_port":8080,"migrate_after":30.0}}': (
        m.Migration("10.0.0.2", 8080, 30).event("to the other machine")
    ),
}

names = st.text(max_size=m.MAX_NAME)
maybe = st.none
ids = st.integers(1, 64)
channel_requests = st.builds(m.ChannelRequest, ids, maybe() | names, st.booleans())
configs = st.builds(
    m.ClientConfig,
    st.lists(channel_requests, max_size=64, unique_by=lambda c: c.id).map(tuple),
    maybe() | st.sampled_from(m.SAMPLE_RATES),
    maybe() | st.sampled_from(m.COMPRESSIONS),
    maybe() | st.sampled_from(("bundle", "mono")),
    maybe() | st.integers(1024, 65535),
    maybe() | st.sampled_from(m.FRAME_MS),
    maybe() | ids,
    maybe() | st.sampled_from(("single", "consecutive")),
    maybe() | st.integers(6000, 510000),
)
client_ids = st.text(min_size=1, max_size=64)
millis = st.integers(-(10**15), 10**15) | st.floats(-1e15, 1e15)
client_messages = st.one_of(
    st.builds(
        m.Hello,
        maybe() | client_ids,
        maybe() | names,
        maybe() | names,
        maybe() | st.text(max_size=m.MAX_PIN),
    ),
    st.builds(m.MetersRequest, st.just(0) | st.integers(50, 5000)),
    configs,
    st.builds(m.Heartbeat, maybe() | st.text(max_size=64) | st.integers(0, 2**60)),
    st.builds(m.NtpRequest, millis, st.booleans()),
    st.builds(m.Bye, maybe() | names),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
extras = st.dictionaries(
    st.text().filter(lambda name: name not in m._EVENT_FIELDS), json_values, max_size=4
)
groups = st.builds(
    m.StreamGroup,
    st.integers(0, 2**32 - 1),
    st.integers(0, 127),
    st.integers(1, 65535),
    st.lists(ids, min_size=1, max_size=64).map(tuple),
)
rates = st.integers(8000, 192000)
ports = st.integers(1, 65535)
server_messages = st.one_of(
    st.builds(
        m.Welcome,
        client_ids,
        names,
        st.builds(m.ServerInfo, st.text(), st.text(), st.text()),
        st.floats(0.001, 3600),
    ),
    st.builds(
        m.Stream,
        client_ids,
        st.sampled_from(("opus", "L16", "L24")),
        rates,
        rates,
        st.floats(0.001, 120),
        st.sampled_from(("bundle", "mono")),
        ports,
        ports,
        st.text(max_size=100),
        st.lists(groups, max_size=8).map(tuple),
    ),
    st.builds(
        m.Event,
        st.sampled_from(m.EVENT_TYPES),
        st.text(),
        maybe() | rates,
        maybe() | st.floats(0, 1e6),
        extras,
    ),
    st.lists(st.tuples(st.integers(-90, 0), ids), max_size=64, unique_by=lambda one: one[1]).map(
        lambda some: m.Meters(tuple(db for db, _ in some), tuple(at for _, at in some))
    ),
    st.lists(st.integers(-90, 0), max_size=64).map(lambda some: m.Meters(tuple(some))),
    st.builds(m.NtpResponse, millis, millis, millis),
    st.builds(m.Error, st.text(max_size=64), st.text()),
)


class WireTests(unittest.TestCase):
    def test_the_specification_is_read(self):
        for text, message in CLIENT_EXAMPLES.items():
            self.assertEqual(decode_client(text), message)
            self.assertEqual(decode_client(text.encode()), message)
        for text, message in SERVER_EXAMPLES.items():
            self.assertEqual(decode_server(text), message)

    def test_what_the_documentation_shows(self):
        """docs/wire/control.md: each message is one, and is written so (its order aside)."""
        page = (ROOT / "docs" / "wire" / "control.md").read_text(encoding="utf-8")
        shown = re.findall(r"^```json (\w+)\n(.*?)^```", page, re.M | re.S)
        seen = set()
        for who, block in shown:
            for line in block.splitlines():
                message = {"listener": decode_client, "server": decode_server}[who](line)
                seen.add(type(message))
                if "type" in json.loads(line):
                    self.assertEqual(json.loads(encode(message)), json.loads(line))
        self.assertEqual(seen, {*get_args(m.ClientMessage), *get_args(m.ServerMessage)})

    def test_the_specification_is_written(self):
        for text, message in (CLIENT_EXAMPLES | SERVER_EXAMPLES).items():
            written, shown = json.loads(encode(message)), json.loads(text)
            if shown["type"] == "client_config":
                del shown["payload"]["channels"][0]["mute"]  # its default
            self.assertEqual(written, shown)

    def test_clock_times_keep_their_kind(self):
        """CLK-1: integers come back as integers, decimals as decimals."""
        self.assertIn(b'"t1":1721123456789,', encode(m.NtpResponse(1721123456789, 1, 2)))
        self.assertIn(b'"t1":1721123456789.25,', encode(m.NtpResponse(1721123456789.25, 1, 2)))
        self.assertFalse(decode_client('{"type":"ntp_request","t1":5}').decimals)
        self.assertTrue(decode_client('{"type":"ntp_request","t1":5.0}').decimals)
        self.assertTrue(decode_client('{"type":"ntp_request","t1":5,"sub_ms":true}').decimals)

    @given(client_messages)
    def test_client_round_trip(self, message):
        self.assertEqual(decode_client(encode(message)), message)

    @given(server_messages)
    def test_server_round_trip(self, message):
        self.assertEqual(decode_server(encode(message)), message)

    @given(names)
    @example("🎸 Gitarre – «Übung» \u202eRTL\u0000 e\u0301 👩🏽‍🎤")
    def test_names_are_byte_exact(self, name):
        """STR-8: any Unicode, neither normalised nor escaped away."""
        config = m.ClientConfig((m.ChannelRequest(1, name),))
        again = decode_client(encode(config)).channels[0].name
        self.assertEqual(again.encode(), name.encode())
        escaped = json.dumps({"type": "hello", "payload": {"name": name}}, ensure_ascii=True)
        self.assertEqual(decode_client(escaped).name.encode(), name.encode())

    def test_what_cannot_be_written_is_our_mistake(self):
        for message in (
            m.Hello(name="\ud800"),
            m.Event("custom_message", "x", fields={"a": object()}),
            m.Event("custom_message", "x", fields={"reason": "y"}),
            m.Event("custom_message", "x" * 2**20),
        ):
            with self.assertRaises(LocalProtocolError):
                encode(message)


class MeaningTests(unittest.TestCase):
    def test_defaults(self):
        """STR-30: every field of the configuration is optional; no channels means all."""
        for text in ('{"type":"client_config"}', '{"type":"client_config","payload":{}}'):
            config = decode_client(text)
            self.assertEqual(config, m.ClientConfig())
            self.assertEqual((config.wanted, config.codec), (None, None))
        self.assertEqual(decode_client('{"type":"hello"}'), m.Hello())
        self.assertEqual(decode_client('{"type":"bye"}'), m.Bye())
        self.assertEqual(decode_client('{"type":"heartbeat"}'), m.Heartbeat())

    def test_muted_channels_are_not_wanted(self):
        """STR-30; and a listener who muted all wants none, not all."""
        three, four = m.ChannelRequest(3), m.ChannelRequest(4, mute=True)
        self.assertEqual(m.ClientConfig((three, four)).wanted, (3,))
        self.assertEqual(m.ClientConfig((four,)).wanted, ())

    def test_none_is_l16(self):
        self.assertEqual(m.ClientConfig(compression="none").codec, "L16")
        self.assertEqual(m.ClientConfig(compression="L24").codec, "L24")

    def test_unknown_fields_are_ignored(self):
        text = (
            '{"x":[1],"type":"client_config","payload":{"volume":1,"channels":[{"id":2,"q":{}}]}}'
        )
        self.assertEqual(decode_client(text).wanted, (2,))

    def test_events_carry_any_fields(self):
        event = m.Event("server_shutdown", "maintenance", reconnect_after=60, fields={"host": "b"})
        sent = json.loads(encode(event))["payload"]
        expected = {"type": "server_shutdown", "reason": "maintenance", "reconnect_after": 60}
        self.assertEqual(sent, {**expected, "host": "b"})
        self.assertEqual(decode_server(encode(event)), event)

    def test_migration(self):
        """CON-51: in the usual envelope, and as the specification has it beside and alone."""
        event = m.Migration("b.local", 8080, 30).event("maintenance")
        sent = json.loads(encode(event))
        data = {"new_host": "b.local", "new_port": 8080, "migrate_after": 30}
        self.assertEqual((sent["event"], sent["data"]), ("serverMigration", data))
        self.assertEqual(
            sent["payload"], {"type": "serverMigration", "reason": "maintenance", **data}
        )
        self.assertEqual(decode_server(encode(event)).migration, m.Migration("b.local", 8080, 30))
        alone = decode_server(json.dumps({"event": "serverMigration", "data": data}))
        self.assertEqual(alone.type, "serverMigration")
        self.assertEqual(alone.migration, m.Migration("b.local", 8080, 30))

    def test_a_migration_nobody_could_follow(self):
        """CON-51: reported as an event, but it leads nowhere."""
        good = {"new_host": "b", "new_port": 1}
        self.assertEqual(m.Event("serverMigration", fields=good).migration, m.Migration("b", 1))
        for bad in (
            {},
            {"new_port": 1},
            good | {"new_host": ""},
            good | {"new_port": 0},
            good | {"new_port": "x"},
            good | {"migrate_after": -1},
            good | {"migrate_after": 1e9},
        ):
            self.assertIsNone(m.Event("serverMigration", fields=bad).migration, bad)
        self.assertIsNone(m.Event("reconnect", fields=good).migration)

    def test_events_without_envelope(self):
        for text in ('{"event":5,"data":{}}', '{"event":"x"}', '{"data":{}}', "[]", "5", "{"):
            with self.assertRaises(MessageError):
                decode_server(text)
        with self.assertRaises(MessageError, msg="it is a server's word"):
            decode_client('{"event":"serverMigration","data":{}}')

    def test_events_of_later_servers(self):
        event = decode_server('{"type":"event","payload":{"type":"later","reason":"r","a":1}}')
        self.assertEqual(event, m.Event("later", "r", fields={"a": 1}))


def config_with(**payload):
    return json.dumps({"type": "client_config", "payload": payload})


class BoundTests(unittest.TestCase):
    def test_meters(self):
        """50 to 5000 ms or 0; whole dB from -90 to 0; one level a channel."""
        for interval in (-1, 1, 49, 5001, 100.5, "100", None):
            with self.assertRaises(MessageError):
                decode_client(json.dumps({"type": "meters", "payload": {"interval_ms": interval}}))
        for payload in (
            {},
            {"peak_db": [1]},
            {"peak_db": [-91]},
            {"peak_db": [-1.5]},
            {"peak_db": [-1] * 65},
            {"peak_db": [-1], "channels": []},
            {"peak_db": [-1], "channels": [1, 2]},
            {"peak_db": [-1], "channels": [65]},
        ):
            with self.assertRaises(MessageError, msg=payload):
                decode_server(json.dumps({"type": "meters", "payload": payload}))

    def test_pin(self):
        text = json.dumps({"type": "hello", "payload": {"pin": "x" * 17}})
        with self.assertRaises(MessageError):
            decode_client(text)


class RefusalTests(unittest.TestCase):
    def refused(self, data, code="bad_message", decode=decode_client):
        with self.assertRaises(MessageError) as caught:
            decode(data)
        self.assertIsInstance(caught.exception, RemoteProtocolError)
        self.assertEqual(caught.exception.code, code)
        self.assertLessEqual(len(caught.exception.message), 300)
        return caught.exception.message

    def test_bounds(self):
        for payload in (
            {"channels": [{"id": n} for n in range(1, 66)]},
            {"channels": [{"id": 0}]},
            {"channels": [{"id": 65}]},
            {"channels": [{"id": 1.5}]},
            {"channels": [{"id": True}]},
            {"channels": [{"id": "1"}]},
            {"channels": [{"name": "no id"}]},
            {"channels": [{"id": 1}, {"id": 1}]},
            {"channels": [{"id": 1, "name": "x" * 257}]},
            {"channels": [{"id": 1, "mute": "no"}]},
            {"channels": {"1": {}}},
            {"sample_rate": 22050},
            {"sample_rate": 10**30},
            {"compression": "mp3"},
            {"layout": "stereo"},
            {"udp_port": 1023},
            {"udp_port": 65536},
            {"frame_ms": 7},
            {"max_group": 0},
            {"ports": "many"},
            {"bitrate": 5999},
        ):
            self.refused(config_with(**payload))

    def test_reasons_can_be_read(self):
        self.assertEqual(
            self.refused(config_with(sample_rate=22050)),
            "sample_rate 22050 is not one of 48000, 44100, 32000, 24000 - at `$.payload`",
        )
        self.assertEqual(
            self.refused(config_with(compression="mp3")),
            "compression is none of opus, none, L16, L24",
        )
        self.assertEqual(
            self.refused(config_with(channels=[{"id": "x"}])),
            "Expected `int`, got `str` - at `$.payload.channels[0].id`",
        )
        self.assertIn("listed twice", self.refused(config_with(channels=[{"id": 1}, {"id": 1}])))

    def test_unknown_types(self):
        reason = self.refused('{"type":"sing"}', "unknown_type")
        self.assertIn("client_config", reason)
        self.refused('{"type":"welcome","payload":{"client_id":"x"}}', "unknown_type")
        self.refused('{"type":"hello"}', "unknown_type", decode_server)
        self.refused(json.dumps({"type": "x" * 10_000}), "unknown_type")

    def test_no_message_at_all(self):
        for data in ("", " ", "null", "[]", "1", '"hello"', "{}", '{"type":1}', "{", "\ufeff{}"):
            self.refused(data)

    def test_hostile_json(self):
        deep = "[" * 100_000 + "]" * 100_000
        for data in (
            '{"type":"hello","x":' + deep + "}",
            '{"type":"hello","payload":{"name":' + deep + "}}",
            '{"a":' * 100_000 + "1" + "}" * 100_000,
            '{"type":"ntp_request","t1":NaN}',
            '{"type":"ntp_request","t1":Infinity}',
            '{"type":"ntp_request","t1":1e999}',
            '{"type":"ntp_request","t1":' + "9" * 5000 + "}",
            '{"type":"ntp_request","t1":1e16}',
            '{"type":"hello","payload":{"name":"\\ud800"}}',
            '{"type":"hello","payload":{"name":"\ud800"}}',
            b'{"type":"hello","payload":{"name":"\xff"}}',
            b'{"type":"hello","payload":{"name":"\xed\xa0\x80"}}',
            b"\x00" * 100,
        ):
            self.refused(data)
        self.refused(
            '{"type":"event","payload":{"type":"a","x":' + deep + "}}", decode=decode_server
        )

    def test_duplicate_keys(self):
        """The last one counts, and is checked like any other."""
        twice = '{"type":"client_config","payload":{"udp_port":5004,"udp_port":6000}}'
        self.assertEqual(decode_client(twice).udp_port, 6000)
        self.refused('{"type":"client_config","payload":{"udp_port":5004,"udp_port":1}}')
        self.refused('{"type":"hello","type":"bye"}', "unknown_type")

    def test_too_large(self):
        self.refused(b'{"type":"bye","x":"' + b"x" * 2**20 + b'"}', "too_large")
        just = b'{"type":"bye","x":"' + b"x" * (2**20 - 21) + b'"}'
        self.assertEqual(len(just), 2**20)
        self.assertEqual(decode_client(just), m.Bye())

    def check_any(self, data):
        for decode in (decode_client, decode_server):
            try:
                decode(data)
            except MessageError as error:
                encode(m.Error(error.code, error.message))  # can be answered

    @given(st.binary(max_size=200) | st.text(max_size=200))
    def test_any_bytes(self, data):
        """Nothing but RemoteProtocolError."""
        self.check_any(data)

    @given(
        st.sampled_from(m._CLIENT_TYPES + m._SERVER_TYPES),
        json_values,
        st.dictionaries(st.sampled_from(("t1", "t2", "t3", "timestamp", "sub_ms")), json_values),
    )
    def test_any_json(self, kind, payload, fields):
        """Nothing but RemoteProtocolError, for well-formed JSON of any shape too."""
        self.check_any(json.dumps({"type": kind, "payload": payload, **fields}).encode())

    @given(client_messages | server_messages, st.data())
    @settings(max_examples=200)
    def test_damaged_messages(self, message, data):
        """Nothing but RemoteProtocolError, when a real message loses or changes bytes."""
        wire = bytearray(encode(message))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(wire) - 1))
            wire[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
            if not wire:
                break
        self.check_any(bytes(wire))
