"""Joins an m32net server for a program that cannot, and prints the SDP of what then flows to it.

    python join.py http://SERVER:8080 PORT [name=value ...] > m32.sdp

The audio goes to UDP ports PORT, PORT+2 and so on of this machine until this program is ended
(Ctrl-C).  Further words are fields of the ``client_config`` message, with JSON values, such as
``'channels=[{"id":1},{"id":2}]' compression=L24 layout=bundle frame_ms=2.5``.
Needs autobahn and twisted, nothing of m32net.
"""

import json
import sys
from contextlib import suppress
from urllib.request import urlopen

from autobahn.exception import Disconnected
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet import defer, endpoints, task


class Listener(WebSocketClientProtocol):
    status = 1

    def say(self, kind, **payload):
        self.sendMessage(json.dumps({"type": kind, "payload": payload}).encode())

    def onOpen(self):
        self.say("hello", name="join.py")
        self.say("client_config", **self.factory.config)

    def onMessage(self, payload, isBinary):
        message = json.loads(payload)
        said = message.get("payload", {})
        if message["type"] == "welcome":
            task.LoopingCall(self.say, "heartbeat").start(said["heartbeat_s"])
        elif message["type"] == "stream":
            with urlopen(self.factory.server + said["sdp"]) as answer:  # noqa: S310
                sys.stdout.write(answer.read().decode())
            sys.stdout.flush()
        elif message["type"] in ("event", "error"):
            sys.stderr.write(f"{message}\n")
            if said.get("type") == "config_changed":  # what was sent has ended: ask again
                self.say("client_config", **self.factory.config)
            elif message["type"] == "error":
                self.sendClose()

    def leave(self):
        self.status = 0
        with suppress(Disconnected):
            self.say("bye")  # and the server closes
        return self.factory.ended

    def onClose(self, wasClean, code, reason):
        self.factory.ended.errback(SystemExit(self.status))


def main(reactor, server, port, *words):
    server = server.rstrip("/")
    factory = WebSocketClientFactory(server.replace("http", "ws", 1) + "/ws", reactor=reactor)
    factory.protocol = Listener
    factory.server = server
    factory.ended = defer.Deferred()
    # What a plain receiver understands: a port and a stream of its own for each channel.
    factory.config = {"udp_port": int(port), "ports": "consecutive", "layout": "mono"}
    for name, _, value in (word.partition("=") for word in words):
        factory.config[name] = value
        with suppress(ValueError):
            factory.config[name] = json.loads(value)

    def joined(listener):
        reactor.addSystemEventTrigger("before", "shutdown", listener.leave)
        return factory.ended

    endpoint = endpoints.HostnameEndpoint(reactor, factory.host, factory.port)
    return endpoint.connect(factory).addCallback(joined)


if __name__ == "__main__":
    task.react(main, sys.argv[1:])
