"""A stand-in for Modal's backend on this machine: the real, unmodified `modal` client deploys, calls and downloads.

`with Loopback(folder, secrets={...}) as server:` serves Modal's protocol on 127.0.0.1 to every process that has
`server.environment` in its environment. A container is a process of the client's own entrypoint in a namespace of its
own, with an almost empty root and private copies of its volumes. So what a test sees is what Modal would do with
serialising, mounts, secrets, retries, timeouts, logs and a forgotten `commit()` or `reload()`. Only the calls that
this project makes are served; any other fails by name and is noted in `server.unknown_rpcs`.

It cannot show what only Modal has: a GPU, the build of an image, quotas and queues, when a machine is taken away and
what is saved then (here a lost container loses everything since its last commit, there is no background commit), how
long a commit takes, the delays and gaps of the real log pipeline, who may do what, and the network.
"""

from loopback.server import Loopback

__all__ = ["Loopback"]
