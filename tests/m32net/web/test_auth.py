"""CON-31, STR-9: passwords, sessions, and the limit on attempts."""

from __future__ import annotations

import hmac
from typing import Any

from argon2 import PasswordHasher
from twisted.internet.defer import Deferred, ensureDeferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.interfaces import RefusedError
from m32net.web import auth
from m32net.web.auth import RECHECK_S, Auth, default_hasher, new_password
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

    def change(self, old: str, new: str, token: str) -> None:
        changing = self.auth.change_password("admin", old, new, "h", token)
        self.successResultOf(ensureDeferred(changing))

    def test_a_changed_password_ends_the_other_sessions(self) -> None:
        """CON-31: revoked at once, all but the one that changed it; that one stays."""
        mine, other = self.login(self.password).token, self.login(self.password).token
        self.change(self.password, "a new password", mine)
        self.assertIsNone(self.auth.user_of(other))
        for _ in range(3):
            self.clock.advance(RECHECK_S)
            self.assertEqual(self.auth.user_of(mine), "admin")

    def test_a_password_changed_from_outside(self) -> None:
        """CON-31: ``m32net passwd`` ends sessions of a running server within 30 s of use."""
        token = self.login(self.password).token
        other = Auth(self.users, self.clock, in_thread=maybeDeferred, hasher=quick_hasher())
        other.reset_password()
        self.clock.advance(RECHECK_S)
        self.auth.user_of(token)
        self.assertIsNone(self.auth.user_of(token))

    def test_sessions_outlive_an_unreadable_database(self) -> None:
        """CON-31: nobody is logged out because a disk is slow or full."""
        token = self.login(self.password).token

        def unreadable(user: str) -> Deferred[str | None]:
            return fail(RefusedError("not_readable", "no", 503))

        self.patch(self.users, "password_hash", unreadable)
        for _ in range(3):
            self.clock.advance(RECHECK_S)
            self.assertEqual(self.auth.user_of(token), "admin")


class LocalToken(AuthCase):
    def setUp(self) -> None:
        super().setUp()
        self.password = str(self.auth.first_run())
        self.secret = "s" * 43
        self.auth = Auth(
            self.users,
            self.clock,
            in_thread=maybeDeferred,
            hasher=quick_hasher(),
            local_token=self.secret,
        )

    def test_as_good_as_a_session(self) -> None:
        """CON-31, CON-51: who can read the state directory needs no password."""
        self.assertEqual(self.auth.user_of(self.secret), "local")
        self.clock.advance(100_000)
        self.assertEqual(self.auth.user_of(self.secret), "local")
        self.auth.logout(self.secret)
        self.assertEqual(self.auth.user_of(self.secret), "local")

    def test_wrong_ones(self) -> None:
        """CON-31: nothing but that token, and none at all where there is none."""
        for wrong in ("", "s", "s" * 42, "s" * 44, "t" * 43, "s" * 42 + "t", None):
            self.assertIsNone(self.auth.user_of(wrong))
        for none in (None, ""):
            auth = Auth(self.users, self.clock, hasher=quick_hasher(), local_token=none)
            self.assertIsNone(auth.user_of(self.secret))
            self.assertIsNone(auth.user_of(none))

    def test_constant_time(self) -> None:
        """CON-31: compared by digest and ``hmac.compare_digest``; the token itself is not kept."""
        compared: list[tuple[bytes, bytes]] = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return one == other

        self.patch(auth.hmac, "compare_digest", compare)
        self.auth.user_of("x" * 43)
        self.assertEqual([len(one) for pair in compared for one in pair], [32, 32])
        self.assertNotIn(self.secret, repr(vars(self.auth)))

    def test_has_no_password(self) -> None:
        """CON-31: it can't be made into one."""
        changing = ensureDeferred(
            self.auth.change_password("local", "", "a new password", "h", self.secret)
        )
        self.assertEqual(self.failureResultOf(changing, RefusedError).value.status, 401)


class Rehashing(AuthCase):
    def setUp(self) -> None:
        super().setUp()
        self.password = str(self.auth.first_run())
        self.weak = self.users.hashes["admin"]
        stronger = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
        self.auth = Auth(self.users, self.clock, in_thread=maybeDeferred, hasher=stronger)

    def test_stronger_parameters(self) -> None:
        """CON-31: a hash made with weaker parameters is renewed at the next log-in, once."""
        token = self.login(self.password).token
        strong = self.users.hashes["admin"]
        self.assertIn("$m=16,t=2,p=1$", strong)
        self.login(self.password)
        self.assertEqual(self.users.hashes["admin"], strong)
        self.clock.advance(RECHECK_S)
        self.auth.user_of(token)
        self.assertEqual(self.auth.user_of(token), "admin", "the session lives on")

    def test_not_for_a_wrong_password(self) -> None:
        """CON-31: only a proven password is hashed anew."""
        self.refusal("x")
        self.assertEqual(self.users.hashes["admin"], self.weak)

    def test_not_over_a_newer_password(self) -> None:
        """CON-31: a password changed while the old one was proven stays changed."""
        reads = [self.weak, "$argon2id$newer"]
        self.patch(self.users, "password_hash", lambda user: succeed(reads.pop(0)))
        self.login(self.password)
        self.assertEqual((self.users.hashes["admin"], reads), (self.weak, []))

    def test_not_saved(self) -> None:
        """CON-31: that a hash could not be renewed keeps nobody out."""
        refused = RefusedError("not_saved", "the disk is full", 503)
        self.patch(self.users, "save_password", lambda user, hashed: fail(refused))
        self.assertEqual(self.login(self.password).user, "admin")
        self.assertEqual(self.users.hashes["admin"], self.weak)


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

    def test_many_addresses(self) -> None:
        """CON-30: those of one /64 are one, many others are limited together; who has logged in
        before may do so again."""
        self.login(self.password, host="2001:db8:1::1")
        tries = [self.refusal("x", host=f"2001:db8:2::{n:x}").status for n in range(1, 20)]
        self.assertEqual(tries, [401] * 10 + [429] * 9)
        tries = [self.refusal("x", host=f"10.0.0.{n}").status for n in range(40)]
        self.assertEqual(tries, [401] * 20 + [429] * 20)
        self.assertEqual(self.refusal(self.password, host="10.1.1.1").status, 429)
        self.login(self.password, host="2001:db8:1::2")
        self.clock.advance(2)
        self.login(self.password, host="10.1.1.1")

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
