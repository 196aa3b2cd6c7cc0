"""Fixtures of the tests against the loopback stand-in; what they give is in cloud_site.py."""

from cloud_site import again, lone, remote, server

__all__ = ["again", "lone", "remote", "server"]
