"""What is refused, and as what."""

import pytest
from azure.servicebus import ServiceBusMessage
from azure.servicebus.exceptions import MessagingEntityDisabledError, ServiceBusAuthenticationError, ServiceBusError
from azure.servicebus.management import EntityStatus

from conftest import connect, eventually, take, text, unique

# The service answers a token for an entity that does not exist with 404, which the SDK turns into this error. Its own
# tests expect the same.
ABSENT = ServiceBusAuthenticationError


@pytest.fixture
def strict():
    with connect(retry_total=0) as client:
        yield client


def test_sending_to_what_is_not_there(strict):
    with pytest.raises(ABSENT):
        with strict.get_queue_sender(unique("nowhere")) as sender:
            sender.send_messages(ServiceBusMessage("x"))


def test_receiving_from_what_is_not_there(strict):
    with pytest.raises(ABSENT):
        with strict.get_queue_receiver(unique("nowhere")) as receiver:
            receiver.receive_messages(max_wait_time=1)


def test_a_subscription_that_is_not_there(strict, topic):
    with pytest.raises(ABSENT):
        with strict.get_subscription_receiver(topic.name, unique("nobody")) as receiver:
            receiver.receive_messages(max_wait_time=1)


def test_a_deleted_queue_is_not_found(strict, admin):
    name = unique("queue")
    admin.create_queue(name)
    with strict.get_queue_sender(name) as sender:
        sender.send_messages(ServiceBusMessage("x"))
        admin.delete_queue(name)
        with pytest.raises(ServiceBusError):
            sender.send_messages(ServiceBusMessage("x"))
    with pytest.raises(ABSENT):
        with strict.get_queue_sender(name) as sender:
            sender.send_messages(ServiceBusMessage("x"))


def test_a_disabled_queue_refuses(strict, admin, queue):
    properties = admin.get_queue(queue)
    properties.status = EntityStatus.SEND_DISABLED
    admin.update_queue(properties)
    with pytest.raises(MessagingEntityDisabledError):
        with strict.get_queue_sender(queue) as sender:
            sender.send_messages(ServiceBusMessage("x"))


def test_names_ignore_case(strict, queue):
    with strict.get_queue_sender(queue.upper()) as sender, strict.get_queue_receiver(queue) as receiver:
        sender.send_messages(ServiceBusMessage("x"))
        assert text(take(receiver, 1)[0]) == "x"


def test_a_failed_link_leaves_its_neighbours_alone(strict, queue):
    with strict.get_queue_sender(queue) as sender, strict.get_queue_receiver(queue) as receiver:
        sender.send_messages(ServiceBusMessage("before"))
        with pytest.raises(ABSENT):
            with strict.get_queue_sender(unique("nowhere")) as other:
                other.send_messages(ServiceBusMessage("x"))
        sender.send_messages(ServiceBusMessage("after"))
        assert [text(m) for m in take(receiver, 2)] == ["before", "after"]


def test_a_subscription_cannot_be_sent_to(strict, topic):
    subscription = topic.subscription()
    with pytest.raises(ServiceBusError):
        with strict.get_queue_sender(f"{topic.name}/Subscriptions/{subscription}") as sender:
            sender.send_messages(ServiceBusMessage("x"))


def test_a_recreated_queue_is_empty(strict, admin):
    name = unique("queue")
    admin.create_queue(name)
    with strict.get_queue_sender(name) as sender:
        sender.send_messages(ServiceBusMessage("old"))
    admin.delete_queue(name)
    admin.create_queue(name)
    try:
        with strict.get_queue_sender(name) as sender, strict.get_queue_receiver(name) as receiver:
            sender.send_messages(ServiceBusMessage("new"))
            assert text(take(receiver, 1)[0]) == "new"
        assert eventually(lambda: admin.get_queue_runtime_properties(name).total_message_count == 1)
    finally:
        admin.delete_queue(name)
