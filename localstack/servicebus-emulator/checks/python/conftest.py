"""What every check starts from: clients of the official SDK, and entities of its own that go with it.

SERVICEBUS_CONNECTION_STRING names the AMQP endpoint, SERVICEBUS_ADMIN_CONNECTION_STRING the HTTPS one, whose certificate
REQUESTS_CA_BUNDLE vouches for.
"""

import os
import time
import uuid
from dataclasses import dataclass

import pytest
from azure.servicebus import ServiceBusClient
from azure.servicebus.management import ServiceBusAdministrationClient

AMQP = os.environ["SERVICEBUS_CONNECTION_STRING"]
ADMIN = os.environ["SERVICEBUS_ADMIN_CONNECTION_STRING"]
# A check that waits for something that comes waits this long for it at most.
SOON = 10


def unique(kind):
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def connect(connection_string=AMQP, **options):
    """A client whose failures come within the check's time."""
    return ServiceBusClient.from_connection_string(connection_string, **{"retry_total": 1, "retry_backoff_factor": 0.1} | options)


def take(receiver, count, wait=SOON):
    """Exactly `count` messages; fewer within `wait` seconds fail the check."""
    taken, deadline = [], time.monotonic() + wait
    while len(taken) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"{len(taken)} of {count} messages after {wait} s"
        taken += receiver.receive_messages(max_message_count=count - len(taken), max_wait_time=left)
    return taken


def nothing(receiver, quiet=0.5):
    """The quiet window that shows absence where there is no later message to show it."""
    found = receiver.receive_messages(max_message_count=1, max_wait_time=quiet)
    assert found == [], f"unexpected: {found}"


def text(message):
    return b"".join(message.body).decode()


def eventually(question, wait=SOON):
    """Asks until the answer is true."""
    deadline = time.monotonic() + wait
    while not (answer := question()):
        assert time.monotonic() < deadline, f"still {answer!r} after {wait} s"
        time.sleep(0.02)
    return answer


@pytest.fixture(scope="session")
def admin():
    with ServiceBusAdministrationClient.from_connection_string(ADMIN, retry_total=1) as admin:
        yield admin


@pytest.fixture
def client():
    with connect() as client:
        yield client


@pytest.fixture
def make_queue(admin):
    """Makes queues; what a check made goes with it."""
    made = []

    def make(**options):
        name = unique("queue")
        admin.create_queue(name, **options)
        made.append(name)
        return name

    yield make
    for name in made:
        admin.delete_queue(name)


@pytest.fixture
def queue(make_queue):
    return make_queue()


@dataclass
class Topic:
    """A topic, and a way to add subscriptions to it."""

    admin: ServiceBusAdministrationClient
    name: str

    def subscription(self, *rules, **options):
        """With rules (filter, or filter and action) instead of the default one, if there are any."""
        name = unique("sub")
        self.admin.create_subscription(self.name, name, **options)
        if rules:
            self.admin.delete_rule(self.name, name, "$Default")
        for number, rule in enumerate(rules):
            filter, action = rule if isinstance(rule, tuple) else (rule, None)
            self.admin.create_rule(self.name, name, f"rule{number}", filter=filter, action=action)
        return name


@pytest.fixture
def topic(admin):
    name = unique("topic")
    admin.create_topic(name)
    yield Topic(admin, name)
    admin.delete_topic(name)
