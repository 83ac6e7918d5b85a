"""`embedlm demonstrations`: which examples help a prompt most."""

NAME = "demonstrations"
EXAMPLES = ""


def command() -> None:
    """."""
