"""Settings: ``oyez.toml`` and the environment, read into frozen typed records.

A setting is one line in one of the classes of `settings`: its type, its default and the *rule* that
says what it may be. Everything else (unknown keys, the environment's name for it, the line in an
error) follows from that line. A field without a rule is filled in by the reader and can't be set.

The environment wins over the file. ``OYEZ_BROKER`` is ``system.broker`` and so on for that table;
other tables are spelt out, ``OYEZ_GATEWAY_LISTEN`` or ``OYEZ_SERVICES_STOCK_ITEMS_HTTP`` (for the
service ``stock-items``). ``OYEZ_STORE`` is the store of every service. Within the file, ``${NAME}``
in a string is that variable of the environment and ``$$`` is a dollar sign. Instead of any of these
variables, the same name with ``_FILE`` behind it names a file that holds its value.
"""

from oyez.config.environment import given
from oyez.config.files import FILE, load, read_file
from oyez.config.rules import Listen, Network, Rate, Replicas, Rule, Secret
from oyez.config.settings import (
    BridgeSettings,
    Companion,
    Config,
    ConsoleLoginSettings,
    ConsoleSettings,
    CorsSettings,
    DeploySettings,
    GatewaySettings,
    HttpBridgeSettings,
    IdempotencySettings,
    IngestSettings,
    IssuerSettings,
    Limit,
    LoginSettings,
    OpenapiSettings,
    ProviderSettings,
    Route,
    ScalingSettings,
    SenderSettings,
    ServiceDeploySettings,
    ServiceSettings,
    SystemSettings,
    WebhookSettings,
)

__all__ = [
    "FILE",
    "BridgeSettings",
    "Companion",
    "Config",
    "ConsoleLoginSettings",
    "ConsoleSettings",
    "CorsSettings",
    "DeploySettings",
    "GatewaySettings",
    "HttpBridgeSettings",
    "IdempotencySettings",
    "IngestSettings",
    "IssuerSettings",
    "Limit",
    "Listen",
    "LoginSettings",
    "Network",
    "OpenapiSettings",
    "ProviderSettings",
    "Rate",
    "Replicas",
    "Route",
    "Rule",
    "ScalingSettings",
    "Secret",
    "SenderSettings",
    "ServiceDeploySettings",
    "ServiceSettings",
    "SystemSettings",
    "WebhookSettings",
    "given",
    "load",
    "read_file",
]
