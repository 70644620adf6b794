"""CON-31, STR-9: passwords, sessions, and the limit on attempts."""

from __future__ import annotations

import hmac
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.interfaces import RefusedError
from m32net.web import auth
from m32net.web.auth import AttemptLimit, Auth, default_hasher, new_password
from tests.m32net.web.case import quick_hasher


class FakeUsers:
    """Provides IUsers."""

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}

    def has_users(self) -> bool:
        return bool(self.hashes)

    def save_password_now(self, user: str, password_hash: str) -> None:
        self.hashes[user] = password_hash

    def password_hash(self, user: str) -> Deferred[str | None]:
        return succeed(self.hashes.get(user))

    def save_password(self, user: str, password_hash: str) -> Deferred[None]:
        self.hashes[user] = password_hash
        return succeed(None)


class AuthCase(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.users = FakeUsers()
        self.auth = self.make(maybeDeferred)

    def make(self, in_thread: Any) -> Auth:
        return Auth(self.users, self.clock, in_thread=in_thread, hasher=quick_hasher())

    def login(self, password: str, user: str = "admin", host: str = "h") -> Any:
        return self.successResultOf(ensureDeferred(self.auth.login(user, password, host)))

    def refusal(self, password: str, user: str = "admin", host: str = "h") -> RefusedError:
        login = ensureDeferred(self.auth.login(user, password, host))
        error = self.failureResultOf(login, RefusedError).value
        assert isinstance(error, RefusedError)
        return error


class FirstRun(AuthCase):
    def test_generated_once(self) -> None:
        """No default password: a made-up one, given once."""
        password = self.auth.first_run()
        assert password is not None
        self.assertRegex(password, r"^([a-hjkmnp-z2-9]{4}-){2}[a-hjkmnp-z2-9]{4}$")
        self.assertIsNone(self.auth.first_run())
        self.assertEqual(self.login(password).user, "admin")

    def test_never_the_same(self) -> None:
        self.assertEqual(len({new_password() for _ in range(200)}), 200)

    def test_only_a_hash_is_kept(self) -> None:
        password = self.auth.first_run()
        self.assertNotIn(str(password), self.users.hashes["admin"])
        self.assertTrue(self.users.hashes["admin"].startswith("$argon2id$"))

    def test_reset(self) -> None:
        old = self.auth.first_run()
        new = self.auth.reset_password()
        self.refusal(str(old))
        self.login(new)

    def test_hash_as_shipped(self) -> None:
        """The default parameters are no weaker than OWASP's for argon2id."""
        hasher = default_hasher()
        self.assertGreaterEqual(hasher.memory_cost * hasher.time_cost, 2 * 19 * 1024)


class Sessions(AuthCase):
    def setUp(self) -> None:
        super().setUp()
        self.password = str(self.auth.first_run())

    def test_tokens(self) -> None:
        """32 random bytes, never the same; kept as digests only."""
        first, second = self.login(self.password).token, self.login(self.password).token
        self.assertNotEqual(first, second)
        self.assertGreaterEqual(len(first), 43)
        self.assertNotIn(first, repr(vars(self.auth)))
        self.assertEqual(self.auth.user_of(first), "admin")

    def test_wrong_ones(self) -> None:
        token = self.login(self.password).token
        for wrong in (None, "", token[:-1], token + "x", "\ud800", "x" * 10_000):
            self.assertIsNone(self.auth.user_of(wrong))

    def test_sliding_hour(self) -> None:
        token = self.login(self.password).token
        self.clock.advance(3599)
        self.assertEqual(self.auth.user_of(token), "admin")
        self.clock.advance(3599)
        self.assertEqual(self.auth.user_of(token), "admin")
        self.clock.advance(3600)
        self.assertIsNone(self.auth.user_of(token))

    def test_logout(self) -> None:
        token = self.login(self.password).token
        self.auth.logout(token)
        self.assertIsNone(self.auth.user_of(token))
        self.auth.logout(token)
        self.auth.logout(None)

    def test_bounded(self) -> None:
        """The session unused for longest gives way."""
        self.patch(auth, "MAX_SESSIONS", 3)
        tokens = [self.login(self.password).token for _ in range(3)]
        self.auth.user_of(tokens[0])
        self.login(self.password)
        self.assertEqual([self.auth.user_of(token) for token in tokens], ["admin", None, "admin"])

    def test_no_comparison_of_secrets(self) -> None:
        """A token is found by its digest, so no comparison stops at the first wrong byte."""
        token = self.login(self.password).token
        (digest,) = self.auth._sessions
        self.assertTrue(hmac.compare_digest(digest, auth._digest(token)))


class Attempts(AuthCase):
    def setUp(self) -> None:
        super().setUp()
        self.password = str(self.auth.first_run())

    def test_ten_a_minute(self) -> None:
        self.assertEqual([self.refusal("x").status for _ in range(12)], [401] * 10 + [429] * 2)
        self.assertEqual(self.refusal(self.password).status, 429)
        self.assertEqual(self.auth.refused["too_many_attempts"], 3)
        self.clock.advance(60)
        self.assertEqual([self.refusal("x").status for _ in range(11)], [401] * 10 + [429])

    def test_by_address(self) -> None:
        """One address' mistakes don't lock another out."""
        for _ in range(11):
            self.refusal("x", host="evil")
        self.login(self.password, host="good")

    def test_forgiven(self) -> None:
        for _ in range(9):
            self.refusal("x")
        self.login(self.password)
        self.assertEqual(self.refusal("x").status, 401)

    def test_bounded_table(self) -> None:
        self.patch(auth, "MAX_ADDRESSES", 5)
        limit = AttemptLimit(self.clock)
        for i in range(20):
            limit.take(str(i))
        self.assertEqual(len(limit._buckets), 5)

    def test_unknown_user_costs_the_same(self) -> None:
        """A hash is computed for a user that does not exist, too."""
        checked: list[Any] = []

        def in_thread(call: Any, *args: Any) -> Any:
            checked.append(args)
            return maybeDeferred(call, *args)

        self.auth = self.make(in_thread)
        first = self.refusal("x", user="admin")
        second = self.refusal("x", user="nobody")
        (known, _), (unknown, _) = checked
        self.assertNotEqual(known, unknown)
        self.assertEqual(known.split("$")[:4], unknown.split("$")[:4], "the same parameters")
        self.assertEqual((first.code, first.message), (second.code, second.message))

    def test_one_hash_at_a_time(self) -> None:
        """However many log in at once, one thread is busy, and waiting is bounded."""
        running: list[Deferred[Any]] = []

        def in_thread(*_: Any) -> Deferred[Any]:
            running.append(Deferred())
            return running[-1]

        self.auth = self.make(in_thread)
        self.patch(auth, "MAX_WAITING", 3)
        logins = [
            ensureDeferred(self.auth.login("admin", self.password, f"host {i}")) for i in range(5)
        ]
        self.assertEqual(len(running), 1)
        self.assertEqual(self.failureResultOf(logins[4], RefusedError).value.code, "busy")
        for i in range(4):
            running[i].callback(True)
            self.successResultOf(logins[i])
        self.assertEqual(len(running), 4)

    def test_damaged_hash(self) -> None:
        self.users.hashes["admin"] = "not a hash"
        self.assertEqual(self.refusal(self.password).status, 401)
