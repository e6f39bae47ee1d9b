"""LocalStack, bound to the loopback address.

With its default server LocalStack 4.13 listens on every interface, whatever GATEWAY_LISTEN says; the server that
does not, hypercorn, is half as fast.
"""

from functools import partial

from twisted.internet import endpoints

endpoints.TCP4ServerEndpoint = partial(endpoints.TCP4ServerEndpoint, interface="127.0.0.1")

from localstack.runtime.main import main  # noqa: E402 (the name is imported from there)

main()
