"""Servers that the tests of several folders start: ``from servers.lying import LyingGateway``."""
