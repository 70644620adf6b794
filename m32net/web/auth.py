"""Who may change settings: passwords, sessions and the limit on attempts (STR-9, CON-31).

Passwords are argon2id hashes, computed in a thread and renewed at a log-in when the parameters
have become stronger; sessions are in memory only, 32 random bytes each, kept as digests, good for
an hour after their last use.  They end with the password they were opened with, whoever changes
it.  There is no default password: the first run makes one up.  Nothing here knows of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from twisted.internet.defer import Deferred, DeferredLock, DeferredSemaphore, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from m32net.interfaces import RefusedError
from m32net.log import RoomLog
from m32net.settings import IUsers
from protocols.attempts import Allowance, Attempts

ADMIN: Final = "admin"
LOCAL: Final = "local"
"""Who holds the local token: programs that may read the state directory."""
SESSION_S: Final = 3600.0
MAX_SESSIONS: Final = 100
RECHECK_S: Final = 30.0
"""How long a session in use may outlive a password that ``m32net passwd`` has replaced; one that
was not in use is good for one request."""
ATTEMPTS: Final = Allowance(10, 6.0)
"""Log-ins one address may try."""
ALL_ATTEMPTS: Final = Allowance(30, 2.0)
"""Those of all addresses together that have not logged in before: one phone may have many."""
MAX_WAITING: Final = 20
"""Log-ins that may wait for their hash; each takes a thread for some 20 ms and 19 MiB."""
MIN_PASSWORD: Final = 8
MAX_PASSWORD: Final = 1024

_ALPHABET: Final = "abcdefghjkmnpqrstuvwxyz23456789"
"""No 0/o, 1/l/i: it is read off a terminal and typed on a phone."""


def new_password() -> str:
    """Three groups of four, such as ``k7fm-wq3x-zd9p``: 59 random bits."""
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(3))
    return "-".join(groups)


def default_hasher() -> PasswordHasher:
    """OWASP's argon2id parameters, one lane: a log-in must not take the cores audio needs."""
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@dataclass(frozen=True, slots=True)
class Session:
    """:ivar token: the secret that proves it, URL-safe text."""

    token: str
    user: str
    expires_s: float


@dataclass(slots=True)
class _Open:
    """A session as it is kept.

    :ivar password: digest of the stored hash it was opened with.
    :ivar checked: when that was still the one in force.
    """

    user: str
    expires: float
    password: bytes
    checked: float


class Auth:
    """Log-ins and their sessions.

    :param users: where the hashes are.
    :param clock: ages sessions and attempts.
    :param in_thread: runs a blocking callable elsewhere and gives a Deferred of its result.
    :param local_token: a secret that is as good as a session; see :data:`LOCAL`.
    :ivar refused: log-ins refused, by reason, since the start.
    """

    _log = RoomLog()

    def __init__(
        self,
        users: IUsers,
        clock: IReactorTime,
        *,
        in_thread: Callable[..., Deferred[Any]] = deferToThread,
        hasher: PasswordHasher | None = None,
        local_token: str | None = None,
    ) -> None:
        self._users = users
        self._clock = clock
        self._in_thread = in_thread
        self._hasher = hasher or default_hasher()
        self._limit = Attempts(ATTEMPTS, ALL_ATTEMPTS)
        self._one_by_one = DeferredSemaphore(1)
        self._writing = DeferredLock()
        self._local = _digest(local_token) if local_token else None
        self._sessions: OrderedDict[bytes, _Open] = OrderedDict()
        self._nobody = self._hasher.hash(secrets.token_urlsafe(32))
        self.refused = {"wrong_password": 0, "too_many_attempts": 0, "busy": 0}  # nosec B105 # counts

    # -- users -------------------------------------------------------------------------------------

    def first_run(self) -> str | None:
        """Create the user ``admin`` if there is no user yet; blocks, for start-up.

        :returns: the password made up for it, saved already, to be shown once; None later.
        :raises RefusedError: it could not be saved.
        """
        if self._users.has_users():
            return None
        return self.reset_password()

    def reset_password(self, user: str = ADMIN) -> str:
        """Give ``user`` a made-up password, which is returned; blocks, for the command line."""
        password = new_password()
        self._users.save_password_now(user, self._hasher.hash(password))
        return password

    async def change_password(self, user: str, old: str, new: str, host: str, token: str) -> None:
        """Replace a password; all sessions but the one of ``token`` end.

        :raises RefusedError: 401 for a wrong old password, 400 for a bad new one, 429.
        """
        if not MIN_PASSWORD <= len(new) <= MAX_PASSWORD:
            raise RefusedError(
                "bad_password", f"password: needs {MIN_PASSWORD} to {MAX_PASSWORD} characters"
            )
        await self._prove(user, old, host)
        await self._writing.run(lambda: ensureDeferred(self._write(user, new)))
        mine = _digest(token)
        for digest in [one for one in self._sessions if one != mine]:
            del self._sessions[digest]

    async def _write(self, user: str, password: str, instead_of: str | None = None) -> None:
        """Store a password's hash, if the one it replaces is still in force."""
        if instead_of is not None and await self._users.password_hash(user) != instead_of:
            return
        hashed = await self._in_thread(self._hasher.hash, password)
        await self._users.save_password(user, hashed)
        for session in self._sessions.values():
            if session.user == user:
                session.password = _digest(hashed)

    async def _renew(self, user: str, password: str, stored: str) -> None:
        """Hash a proven password again if that is done more strongly now than it was."""
        if not self._hasher.check_needs_rehash(stored):
            return
        writing = self._writing.run(lambda: ensureDeferred(self._write(user, password, stored)))
        try:
            await writing
        except RefusedError as reason:  # the old hash is as right as before
            self._log.warn("web: the hash of {user!r} stays: {reason}", user=user, reason=reason)

    # -- sessions ----------------------------------------------------------------------------------

    async def login(self, user: str, password: str, host: str) -> Session:
        """Open a session.

        :raises RefusedError: 401 for a wrong name or password, 429 after too many attempts.
        """
        stored = await self._prove(user, password, host)
        token = secrets.token_urlsafe(32)
        now = self._clock.seconds()
        self._sessions[_digest(token)] = _Open(user, now + SESSION_S, _digest(stored), now)
        await self._renew(user, password, stored)
        self._forget_old()
        self._log.info("web: {user} logged in from {host}", user=user, host=host)
        return Session(token, user, SESSION_S)

    async def _prove(self, user: str, password: str, host: str) -> str:
        """The stored hash that this password fits.

        :raises RefusedError: it does not, or can't be tried now.
        """
        wait = self._limit.take(host, self._clock.seconds())
        if wait:
            self.refused["too_many_attempts"] += 1
            raise RefusedError(
                "too_many_attempts", f"too many attempts; try again in {math.ceil(wait)} s", 429
            )
        if len(self._one_by_one.waiting) >= MAX_WAITING:
            self.refused["busy"] += 1
            raise RefusedError("busy", "too many log-ins at the same time; try again", 429)
        stored = await self._users.password_hash(user)
        # An unknown user costs as much time as a known one, so names can't be told apart.
        right = await self._one_by_one.run(
            self._in_thread, self._matches, stored or self._nobody, password
        )
        if stored is None or not right:
            self.refused["wrong_password"] += 1
            self._log.warn("web: wrong password for {user!r} from {host}", user=user, host=host)
            raise RefusedError("wrong_password", "wrong user or password", 401)
        self._limit.was_right(host)
        return stored

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    def user_of(self, token: str | None) -> str | None:
        """Whose session it is, which lives an hour more by this; None if it is nobody's."""
        if not token or len(token) > MAX_PASSWORD:
            return None
        # Looked up by digest: how long that takes tells nothing about the token.
        digest = _digest(token)
        if self._local is not None and hmac.compare_digest(digest, self._local):
            return LOCAL
        session = self._sessions.get(digest)
        now = self._clock.seconds()
        if session is None or session.expires <= now:
            self._sessions.pop(digest, None)
            return None
        session.expires = now + SESSION_S
        self._sessions.move_to_end(digest)
        if now - session.checked >= RECHECK_S:
            session.checked = now
            self._recheck(session.user)
        return session.user

    def _recheck(self, user: str) -> None:
        """End the sessions of a password that another process has replaced."""

        def compare(stored: str | None) -> None:
            password = _digest(stored or "")
            for digest, session in list(self._sessions.items()):
                if session.user == user and session.password != password:
                    del self._sessions[digest]

        def unreadable(failure: Failure) -> None:
            failure.trap(RefusedError)  # type: ignore[no-untyped-call]

        def look() -> Deferred[None]:
            return self._users.password_hash(user).addCallbacks(compare, unreadable)

        self._writing.run(look)

    def logout(self, token: str | None) -> None:
        """Revoke a session; an unknown token is no error."""
        if token:
            self._sessions.pop(_digest(token), None)

    def _forget_old(self) -> None:
        now = self._clock.seconds()
        while self._sessions:
            digest, session = next(iter(self._sessions.items()))
            if session.expires > now and len(self._sessions) <= MAX_SESSIONS:
                break
            del self._sessions[digest]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
