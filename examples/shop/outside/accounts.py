"""An OpenID Connect provider: the accounts of a few people, without passwords.

Whoever logs in picks who they are. The protocol is Authlib's; here are the accounts, the client and
the page. Codes are kept in memory and work once; the key is made at the first start.
"""

# The stubs of Authlib that pyright brings differ from it in what may be None, and in what its
# methods are given.
# pyright: reportArgumentType=false, reportAssignmentType=false
# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportOptionalMemberAccess=false

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from authlib.oauth2 import AuthorizationServer, OAuth2Error, OAuth2Request
from authlib.oauth2.rfc6749 import ClientMixin, InvalidRequestError, OAuth2Payload
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc9207 import IssuerParameter
from authlib.oidc.core import OpenIDCode, UserInfo
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from outside.json_http import application, read_body
from outside.pages import STATIC, FileEndpoint, SecurityHeaders
from outside.server import announce, arguments, bind, exit_zero_on_signals, fail, serve

NAME = "accounts"
SCOPES = ("openid", "profile", "email")
CODE_SECONDS = 60.0
"""How long a code may wait to be redeemed."""
TOKEN_SECONDS = 300
MOST_CODES = 1_000


class Account(NamedTuple):
    """Somebody who can log in."""

    subject: str
    name: str
    roles: tuple[str, ...]

    @property
    def email(self) -> str:
        """Their address."""
        return f"{self.subject}@example.org"


ACCOUNTS = {
    each.subject: each
    for each in (
        Account("alice", "Alice Archer", ("customer",)),
        Account("bob", "Bob Baker", ("customer",)),
        Account("carol", "Carol Clerk", ("clerk",)),
    )
}


class Client(ClientMixin):  # type: ignore[misc]  # Authlib has no types
    """A site that people log in to. Without a secret it is a public client.

    ``redirects`` are the addresses that people may be sent back to.
    """

    def __init__(self, client_id: str, redirects: Sequence[str], secret: str | None) -> None:
        self.client_id = client_id
        self.redirects = redirects
        self.secret = secret

    def get_client_id(self) -> str:
        """What it calls itself."""
        return self.client_id

    def get_default_redirect_uri(self) -> None:
        """It has to say where to."""

    def get_allowed_scope(self, scope: str | None) -> str:
        """What it may ask for."""
        return " ".join(each for each in (scope or "").split() if each in SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Whether people may be sent there."""
        return redirect_uri in self.redirects

    def check_client_secret(self, client_secret: str) -> bool:
        """Whether it is who it says."""
        return self.secret is not None and secrets.compare_digest(client_secret, self.secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """How it has to say who it is."""
        return method == ("none" if self.secret is None else "client_secret_basic")

    def check_response_type(self, response_type: str) -> bool:
        """Codes are all that is given out."""
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        """Codes are all that is taken."""
        return grant_type == "authorization_code"


class Code(NamedTuple):
    """What was agreed when a code was given out; methods and fields are Authlib's."""

    code: str
    client_id: str
    account: Account
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str
    code_challenge_method: str
    made_at: float

    def get_redirect_uri(self) -> str:
        """Where it was sent to."""
        return self.redirect_uri

    def get_scope(self) -> str:
        """What was allowed."""
        return self.scope

    def get_nonce(self) -> str | None:
        """What the ID token has to repeat."""
        return self.nonce

    def get_auth_time(self) -> int:
        """When the person logged in."""
        return int(self.made_at)

    def get_acr(self) -> None:
        """No class of authentication."""

    def get_amr(self) -> None:
        """No method of authentication."""


class Asked(OAuth2Request):  # type: ignore[misc]
    """A request as Authlib reads it: the query, or the form of a POST."""

    def __init__(self, request: Request, form: Mapping[str, str]) -> None:
        super().__init__(request.method, str(request.url), headers=request.headers)
        given = list(request.query_params.multi_items()) if request.method == "GET" else []
        self._form = dict(form)
        self.payload = Given([*given, *form.items()])

    @property
    def form(self) -> dict[str, str]:
        """The fields of the form."""
        return self._form

    @property
    def args(self) -> dict[str, str]:
        """The fields of the query."""
        return dict(self.payload.data)


class Given(OAuth2Payload):  # type: ignore[misc]
    """The parameters of a request."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    @property
    def data(self) -> dict[str, str]:
        """By name, the last of each."""
        return dict(self._pairs)

    @property
    def datalist(self) -> dict[str, list[str]]:
        """By name, all of each."""
        found: dict[str, list[str]] = {}
        for name, value in self._pairs:
            found.setdefault(name, []).append(value)
        return found


class Answer(Response):
    """A response whose place to go to Authlib may change."""

    @property
    def location(self) -> str | None:
        """Where it redirects to."""
        return self.headers.get("location")

    @location.setter
    def location(self, value: str) -> None:
        self.headers["location"] = value


class Server(AuthorizationServer):  # type: ignore[misc]
    """The protocol, with one client and the codes that wait."""

    def __init__(self, issuer: str, client: Client, key: RSAKey) -> None:
        super().__init__(scopes_supported=SCOPES)
        self.issuer = issuer
        self.client = client
        self.key = key
        self.codes: dict[str, Code] = {}
        tokens = BearerTokenGenerator(
            lambda **_: secrets.token_urlsafe(32), expires_generator=TOKEN_SECONDS
        )
        self.register_token_generator("default", tokens)
        self.register_grant(Grant, [Pkce(), IdTokens(self)])
        self.register_extension(Issuer(issuer))

    def query_client(self, client_id: str) -> Client | None:
        """The client of that name."""
        return self.client if client_id == self.client.client_id else None

    def save_token(self, token: dict[str, Any], request: OAuth2Request) -> None:
        """Access tokens open nothing here, so none is kept."""

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def create_oauth2_request(self, request: Asked) -> Asked:
        """The endpoints have read it already."""
        return request

    def refusal(self, error: OAuth2Error) -> Answer:
        """The answer to a request that is wrong."""
        answer: Answer = self.handle_error_response(None, error)
        return answer

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> Answer:
        """As Starlette has it."""
        content = json.dumps(body) if isinstance(body, dict) else body
        return Answer(content, status, dict(headers))


class Grant(AuthorizationCodeGrant):  # type: ignore[misc]
    """Codes for tokens: each works once, within a minute."""

    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "none")

    def save_authorization_code(self, code: str, request: OAuth2Request) -> Code:
        """Keep what was agreed."""
        given, codes = request.payload.data, self.server.codes
        while len(codes) >= MOST_CODES:
            del codes[next(iter(codes))]
        kept = codes[code] = Code(
            code=code,
            client_id=request.client.client_id,
            account=request.user,
            redirect_uri=given["redirect_uri"],
            scope=request.scope,
            nonce=given.get("nonce"),
            code_challenge=given["code_challenge"],
            code_challenge_method=given["code_challenge_method"],
            made_at=time.time(),
        )
        return kept

    def query_authorization_code(self, code: str, client: Client) -> Code | None:
        """Take out what was agreed: whoever tries a code uses it up."""
        found: Code | None = self.server.codes.pop(code, None)
        if found is None or found.client_id != client.client_id:
            return None
        return found if time.time() < found.made_at + CODE_SECONDS else None

    def delete_authorization_code(self, authorization_code: Code) -> None:
        """It is gone already."""

    def authenticate_user(self, authorization_code: Code) -> Account:
        """Who logged in."""
        return authorization_code.account


class Pkce(CodeChallenge):  # type: ignore[misc]
    """Every client has to prove that it redeems its own code."""

    def validate_code_challenge(self, grant: Grant, redirect_uri: str) -> None:
        """Refuse a request without a challenge of that kind."""
        if grant.request.payload.data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("A 'code_challenge' by S256 is required")
        super().validate_code_challenge(grant, redirect_uri)


class IdTokens(OpenIDCode):  # type: ignore[misc]
    """ID tokens: who logged in."""

    def __init__(self, server: Server) -> None:
        super().__init__(require_nonce=False)
        self._server = server

    def exists_nonce(self, nonce: str, request: OAuth2Request) -> bool:
        """Whether it waits already."""
        return any(each.nonce == nonce for each in self._server.codes.values())

    def resolve_client_private_key(self, client: Client) -> RSAKey:
        """What signs them."""
        return self._server.key

    def get_client_algorithm(self, client: Client) -> str:
        """How they are signed."""
        return "RS256"

    def get_encode_header(self, client: Client) -> dict[str, Any]:
        """By which key."""
        return {"alg": "RS256", "kid": self._server.key.kid}

    def get_client_claims(self, client: Client) -> dict[str, Any]:
        """By whom, for whom, for how long."""
        expiry = int(time.time()) + TOKEN_SECONDS
        return {"iss": self._server.issuer, "aud": [client.client_id], "exp": expiry}

    def generate_user_info(self, user: Account, scope: str) -> UserInfo:
        """What is told of somebody."""
        told = UserInfo(sub=user.subject, roles=list(user.roles))
        if "profile" in scope.split():
            told["name"] = user.name
        if "email" in scope.split():
            told["email"] = user.email
        return told


class Issuer(IssuerParameter):  # type: ignore[misc]
    """Every answer says whose it is (RFC 9207)."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer

    def get_issuer(self) -> str:
        """Whose."""
        return self._issuer


class Endpoints:
    """The web side."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def configuration(self, _: Request) -> Response:
        """What clients need to know."""
        issuer = self._server.issuer
        return JSONResponse(
            {
                "issuer": issuer,
                "authorization_endpoint": f"{issuer}/authorize",
                "token_endpoint": f"{issuer}/token",
                "jwks_uri": f"{issuer}/keys",
                "end_session_endpoint": f"{issuer}/logout",
                "scopes_supported": SCOPES,
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "token_endpoint_auth_methods_supported": list(Grant.TOKEN_ENDPOINT_AUTH_METHODS),
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def keys(self, _: Request) -> Response:
        """The public key."""
        return JSONResponse({"keys": [self._server.key.as_dict(private=False)]})

    async def ask(self, request: Request) -> Response:
        """The page on which somebody picks who they are."""
        try:
            self._server.get_consent_grant(Asked(request, {}))
        except OAuth2Error as error:
            return self._server.refusal(error)
        return _page("Who are you?", _choice(request.url.query))

    async def choose(self, request: Request) -> Response:
        """Send whoever was picked back with a code; nobody, with a refusal."""
        picked = dict(parse_qsl((await read_body(request)).decode("ascii", "replace")))
        account = ACCOUNTS.get(picked.get("account", ""))
        asked = Asked(request, dict(parse_qsl(request.url.query)))
        try:
            grant = self._server.get_consent_grant(asked, account)
        except OAuth2Error as error:
            return self._server.refusal(error)
        answer: Answer = self._server.create_authorization_response(asked, account, grant)
        answer.status_code = 303 if answer.status_code == 302 else answer.status_code
        return answer

    async def token(self, request: Request) -> Response:
        """Redeem a code."""
        form = dict(parse_qsl((await read_body(request)).decode("ascii", "replace")))
        answer: Answer = self._server.create_token_response(Asked(request, form))
        return answer

    async def logout(self, request: Request) -> Response:
        """Nobody stays logged in here, so it is the way back alone."""
        given, client = request.query_params, self._server.client
        back = given.get("post_logout_redirect_uri", "")
        homes = [f"{home.scheme}://{home.netloc}/" for home in map(urlsplit, client.redirects)]
        if given.get("client_id") == client.client_id and back in homes:
            return RedirectResponse(back, 303)
        return _page("You are logged out", "<p>You can close this page.</p>")


def build(issuer: str, client: Client, key: RSAKey) -> Starlette:
    """The provider as an ASGI app."""
    endpoints = Endpoints(Server(issuer, client, key))
    return application(
        [
            Route("/.well-known/openid-configuration", endpoints.configuration),
            Route("/keys", endpoints.keys),
            Route("/authorize", endpoints.ask),
            Route("/authorize", endpoints.choose, methods=["POST"]),
            Route("/token", endpoints.token, methods=["POST"]),
            Route("/logout", endpoints.logout),
            Route("/style.css", FileEndpoint(STATIC / "style.css")),
            Route("/icon.svg", FileEndpoint(STATIC / "icon.svg")),
        ],
        middleware=[Middleware(SecurityHeaders)],
    )


def read_key(folder: Path) -> RSAKey:
    """The key that signs, made at the first start; exit 2 in one line if it can't be kept."""
    path = folder / f"{NAME}.key"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            made = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
            content = json.dumps(made.as_dict(private=True))
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(content)
        return RSAKey.import_key(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        fail(NAME, f"can't keep a key in {path}: {error}; choose another folder with --data")


def _choice(query: str) -> str:
    buttons = "".join(
        f'<li><button name="account" value="{escape(each.subject)}">{escape(each.name)}'
        f"<span>{escape(', '.join(each.roles))}</span></button></li>"
        for each in ACCOUNTS.values()
    )
    return (
        f'<form method="post" action="/authorize?{escape(query)}"><ul class="people">{buttons}</ul>'
        '<button class="back" name="account" value="">Go back without logging in</button></form>'
    )


def _page(title: str, body: str) -> Response:
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><link rel="icon" href="/icon.svg">'
        '<link rel="stylesheet" href="/style.css"></head>'
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )


def main() -> None:
    """``python -m outside.accounts``; the client's secret is ``ACCOUNTS_CLIENT_SECRET``."""
    parser = arguments(NAME, "An OpenID Connect provider for tests.", listen="127.0.0.1:8092")
    parser.add_argument("--client", default="shop", metavar="ID", help="the client's name")
    parser.add_argument(
        "--redirect",
        nargs="+",
        default=["http://127.0.0.1:8080/login/callback"],
        metavar="URL",
        help="where people may be sent back to",
    )
    options = parser.parse_args()
    exit_zero_on_signals()
    listener = bind(NAME, options.listen)
    key = read_key(options.data)
    host, port = listener.getsockname()[:2]
    client = Client(options.client, options.redirect, os.environ.get("ACCOUNTS_CLIENT_SECRET"))
    announce(NAME, listener)
    asyncio.run(serve(build(f"http://{host}:{port}", client, key), listener))


if __name__ == "__main__":
    main()
