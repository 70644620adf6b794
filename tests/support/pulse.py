"""A private PulseAudio daemon with a 32-channel null sink: audio hardware for tests that have none.

What is played into the sink with ``pacat`` comes out of its monitor, bit for bit, which is what
PortAudio's ``pulse`` device records.  The daemon, its socket and its cookie live in a directory of
their own (mode 0700), so a desktop's own daemon is neither needed nor disturbed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

CHANNELS = 32
RATE = 48_000
SINK = "m32"
DEADLINE_S = 10.0

_NAMED = "front-left,front-right,rear-left,rear-right,front-center,lfe,side-left,side-right"
# Without the explicit map PulseAudio drops or shifts channels.
CHANNEL_MAP = ",".join([_NAMED, *(f"aux{i}" for i in range(CHANNELS - 8))])

_PROGRAMS = ("pulseaudio", "pacat", "pactl")
_VARIABLES = ("HOME", "XDG_RUNTIME_DIR", "PULSE_SERVER", "PULSE_LATENCY_MSEC")


def missing() -> str | None:
    """Why these tests can't run here, for trial's ``skip``; None if they can."""
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install pulseaudio pulseaudio-utils)"
    try:
        import sounddevice  # noqa: F401
    except (ImportError, OSError) as error:
        return f"PortAudio is not usable here: {error}"
    plugins = Path("/usr/lib").glob("**/alsa-lib/libasound_module_pcm_pulse.so")
    if next(plugins, None) is None:
        return "ALSA's pulse plug-in is not installed (apt-get install libasound2-plugins)"
    return None


class PulseDaemon:
    """One PulseAudio daemon in ``directory``, started and stopped by its process id."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._daemon: subprocess.Popen[bytes] | None = None
        self._players: list[subprocess.Popen[bytes]] = []
        self._before: dict[str, str | None] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a client of this daemon."""
        environment = {**os.environ, "PULSE_SERVER": f"unix:{self._socket}"}
        environment |= {"HOME": str(self.directory), "XDG_RUNTIME_DIR": str(self.directory)}
        # What m32net sets for capturing would make a player run dry.
        environment.pop("PULSE_LATENCY_MSEC", None)
        return environment

    @property
    def _socket(self) -> Path:
        return self.directory / "pulse" / "native"

    def start(self) -> None:
        """Start the daemon and wait until its sink is there.

        :raises RuntimeError: with the daemon's own words, if it isn't within 10 s.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        (self.directory / "pulse").mkdir(mode=0o700, exist_ok=True)
        sink = (
            f"module-null-sink sink_name={SINK} channels={CHANNELS} rate={RATE}"
            f" format=s32le channel_map={CHANNEL_MAP}"
        )
        socket = f"module-native-protocol-unix socket={self._socket}"
        log = (self.directory / "daemon.log").open("ab")
        command = ["pulseaudio", "-n", "--exit-idle-time=-1", "--daemonize=no", "--use-pid-file=no"]
        self._daemon = subprocess.Popen(
            [*command, "-L", sink, "-L", socket],
            env=self.environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        log.close()
        deadline = time.monotonic() + DEADLINE_S
        while SINK not in self._sinks():
            if time.monotonic() > deadline or self._daemon.poll() is not None:
                said = (self.directory / "daemon.log").read_text(errors="replace")
                self.stop()
                raise RuntimeError(f"PulseAudio did not start: {said[-2000:]}")
            time.sleep(0.05)

    def _sinks(self) -> str:
        listed = subprocess.run(
            ["pactl", "list", "short", "sinks"],
            env=self.environment,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return listed.stdout.decode(errors="replace")

    def play(self, path: Path) -> subprocess.Popen[bytes]:
        """Play raw int32 little-endian samples, 32 channels at 48 kHz, into the sink."""
        layout = ["--raw", "--format=s32le", f"--channels={CHANNELS}", f"--rate={RATE}"]
        player = subprocess.Popen(
            ["pacat", "-p", *layout, f"--channel-map={CHANNEL_MAP}", "-d", SINK, str(path)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._players.append(player)
        return player

    def kill(self) -> None:
        """End the daemon without warning its clients, like a cable that is pulled."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the players and the daemon."""
        for player in self._players:
            if player.poll() is None:
                player.kill()
            player.wait(DEADLINE_S)
        self._players.clear()
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return
        if daemon.poll() is None:
            daemon.send_signal(how)
        try:
            daemon.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        self._socket.unlink(missing_ok=True)

    def adopt_environment(self) -> None:
        """Make this process a client of the daemon, until :meth:`restore_environment`."""
        for name in _VARIABLES:
            self._before.setdefault(name, os.environ.get(name))
        for name in ("HOME", "XDG_RUNTIME_DIR", "PULSE_SERVER"):
            os.environ[name] = self.environment[name]

    def restore_environment(self) -> None:
        """Undo :meth:`adopt_environment`."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before.clear()
