"""Seals the tokens of a login, so that who reads the books cannot log in.

Fernet, by a key that HKDF (RFC 5869) makes of the client's secret; of the seed for public clients. Where the client's
secret is changed, a new seed has to come with it.
"""

from __future__ import annotations

import base64
import hmac

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["Sealing"]


class Sealing(Unshown):
    """Seals and opens tokens, and knows a seed by its digest. ``secret`` is the client's, None: it is a public client.

    Each row has a ``salt`` of its own.
    """

    def __init__(self, seed: str, secret: str | None) -> None:
        self._seed, self._secret = seed, secret
        self._keys: dict[tuple[bytes, str], bytes] = {}

    def digest(self, salt: bytes) -> bytes:
        """What the seed is known by. A refresh token cannot be guessed (RFC 6749, section 10.10), so a salted digest
        says nothing of it."""
        return self._key(salt, "seed", self._seed)

    def is_seed(self, salt: bytes, digest: bytes) -> bool:
        """Whether a digest is that of the seed."""
        return hmac.compare_digest(self.digest(salt), digest)

    def sealed(self, salt: bytes, token: str) -> bytes:
        """A token as it is stored."""
        return self._fernet(salt).encrypt(token.encode())

    def opened(self, salt: bytes, token: bytes) -> str | None:
        """A stored token; None: it was sealed with another client's secret."""
        try:
            return self._fernet(salt).decrypt(token).decode()
        except InvalidToken:
            return None

    def _fernet(self, salt: bytes) -> Fernet:
        return Fernet(base64.urlsafe_b64encode(self._key(salt, "tokens", self._secret or self._seed)))

    def _key(self, salt: bytes, purpose: str, secret: str) -> bytes:
        if (salt, purpose) not in self._keys:
            info = f"airflow_extract_provider oauth_token {purpose}".encode()
            self._keys[salt, purpose] = HKDF(SHA256(), 32, salt, info).derive(secret.encode())
        return self._keys[salt, purpose]
