"""Both tables of states: total, without dead ends, and drawn as the documentation shows."""

from __future__ import annotations

from twisted.trial import unittest

from protocols.control import client_session, server_session
from protocols.control.states import (
    CLIENT_TABLE,
    SERVER_TABLE,
    ClientAction,
    ClientInput,
    ClientState,
    ServerAction,
    ServerInput,
    ServerState,
    mermaid,
)

MACHINES = (
    (SERVER_TABLE, ServerState, ServerInput, ServerAction, server_session._SERVER_DOES),
    (CLIENT_TABLE, ClientState, ClientInput, ClientAction, client_session._CLIENT_DOES),
)


class TableTests(unittest.TestCase):
    def test_total(self):
        for table, states, inputs, _, _ in MACHINES:
            self.assertEqual(set(table), {(s, i) for s in states for i in inputs})

    def test_every_action_is_used_and_done(self):
        for table, _, _, actions, done in MACHINES:
            self.assertEqual({action for _, action in table.values()}, set(actions))
            self.assertEqual(set(done), set(actions))

    def test_every_state_is_reached_and_can_end(self):
        for table, states, _, _, _ in MACHINES:
            reached = {next(iter(states))}
            for _ in states:
                reached |= {target for (state, _), (target, _) in table.items() if state in reached}
            self.assertEqual(reached, set(states))
            for state in states:
                self.assertIn("CLOSED", {table[key][0].name for key in table if key[0] is state})

    def test_closed_is_for_good(self):
        for table, states, inputs, actions, _ in MACHINES:
            for what in inputs:
                self.assertEqual(
                    table[states["CLOSED"], what], (states["CLOSED"], actions["IGNORE"])
                )


class DiagramTests(unittest.TestCase):
    def test_what_is_drawn(self):
        drawn = mermaid(SERVER_TABLE)
        self.assertIn("    [*] --> NEW\n", drawn)
        self.assertIn("    NEW --> JOINED: hello / join\n", drawn)
        self.assertNotIn("ignore", drawn)
        for line in drawn.splitlines()[1:]:
            self.assertRegex(line, r"^    (\[\*\]|[A-Z]+) --> (\[\*\]|[A-Z]+)(: [a-z_, /]+)?$")
