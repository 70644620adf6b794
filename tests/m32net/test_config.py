"""STR-43: settings in layers; a wrong one is one clear line that says where it came from."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.config import SETTINGS, ConfigError, ServerConfig, resolve


class LayersTest(unittest.TestCase):
    def toml(self, text: str) -> Path:
        path = Path(self.mktemp())
        path.write_text(text, encoding="utf-8")
        return path

    def test_precedence(self) -> None:
        """Command line, then environment, then file, then default."""
        toml = self.toml('source = "test"\nrtp_port = 6000\nchannels = 8\nname = "foh"')
        environ = {"M32NET_RTP_PORT": "6002", "M32NET_CHANNELS": "16", "HOME": "/home/x"}
        config = resolve({"channels": "24", "source": None}, environ, toml)
        self.assertEqual(config.channels, 24)
        self.assertEqual(config.rtp_port, 6002)
        self.assertEqual(config.source, "test")
        self.assertEqual(config.name, "foh")
        self.assertEqual(config.http, "tcp:8080")
        self.assertEqual(config.state_dir, Path("/home/x/.local/state/m32net"))

    def test_every_setting_has_all_three_names(self) -> None:
        """STR-43: DSCP, thresholds' peers and steps are settings; so is everything else."""
        good = {
            "state-dir": "/tmp/x", "source": "device:M32", "channels": "8", "sample-rate": "32000",
            "codec": "l24", "bitrate": "64000", "frame-ms": "2.5", "opus-complexity": "3",
            "encoder-threads": "1", "http": "tcp:9", "https": "tcp:9", "interface": "127.0.0.1",
            "rtp-port": "6000", "send-method": "sendmmsg", "dscp": "34", "max-listeners": "9",
            "max-connections": "50", "heartbeat-timeout": "12.5", "grace": "1", "name": "x",
            "mdns": "no", "log-level": "debug", "take-over": "yes", "compression": "no",
            "tls-certificate": "/c.pem", "tls-key": "/k.pem", "peer-ca": "/p.pem", "block": "60",
            "connections-per-minute": "5", "exempt": "10.0.0.0/8,::1", "message-ttl": "5",
            "tcp-nodelay": "no", "tcp-keepalive": "1", "tcp-keepalive-interval": "2",
            "tcp-keepalive-probes": "3", "tcp-buffer": "128", "tcp-linger": "1",
            "tcp-user-timeout": "4", "tcp-quickack": "no", "tcp-retry": "2", "mptcp": "yes",
            "ping-interval": "3", "pong-timeout": "9",
        }  # fmt: skip
        self.assertEqual({setting.option for setting in SETTINGS}, set(good))
        by_option = resolve(good, {})
        by_variable = resolve({}, {s.variable: good[s.option] for s in SETTINGS})
        lines = "\n".join(f'{option} = "{value}"' for option, value in good.items())
        by_file = resolve({}, {}, self.toml("[m32net]\n" + lines))
        self.assertEqual(by_option, by_variable)
        self.assertEqual(by_option, by_file)
        self.assertNotEqual(by_option, ServerConfig(by_option.state_dir))
        self.assertEqual((by_option.codec, by_option.frame_us), ("L24", 2500))

    def test_errors_name_the_place(self) -> None:
        cases = (
            ({"rtp-port": "http"}, {}, "", "--rtp-port: 'http' is not a whole number"),
            ({}, {"M32NET_DSCP": "64"}, "", "M32NET_DSCP: 64 is outside 0..63"),
            ({}, {}, "frame-ms = 7", "frame-ms: '7' is none of 2.5, 5, 10, 20"),
            ({}, {}, "frobnicate = 1", "unknown setting 'frobnicate'"),
            ({}, {}, "source = [1]", "source must be a text"),
            ({}, {}, "source = ", "is not valid TOML"),
            ({"source": "tape"}, {}, "", "'tape' is none of demo, test, file:PATH"),
            ({"interface": "wlan0"}, {}, "", "is not an IPv4 address"),
            ({"exempt": "stage"}, {}, "", "--exempt: 'stage' is no IP address or network"),
        )
        for options, environ, text, expected in cases:
            error = self.assertRaises(ConfigError, resolve, options, environ, self.toml(text))
            self.assertIn(expected, str(error))
            self.assertNotIn("\n", str(error))

    def test_unreadable_file(self) -> None:
        error = self.assertRaises(ConfigError, resolve, {}, {}, Path("/nowhere/m32net.toml"))
        self.assertIn("cannot read /nowhere/m32net.toml: No such file", str(error))

    @given(st.sampled_from(SETTINGS), st.text(max_size=40))
    def test_any_text_is_taken_or_refused_with_a_reason(self, setting: object, text: str) -> None:
        try:
            resolve({setting.option: text}, {"HOME": "/home/x"})  # type: ignore[attr-defined]
        except ConfigError as error:
            self.assertIn(setting.option, str(error))  # type: ignore[attr-defined]
