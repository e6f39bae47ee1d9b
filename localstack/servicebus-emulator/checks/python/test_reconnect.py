"""Connections that are lost, and clients that come back by themselves."""

import threading
from datetime import timedelta

import pytest
from azure.servicebus import ServiceBusMessage

from conftest import AMQP, connect, take, text
from proxy import Proxy


@pytest.fixture
def proxy():
    proxy = Proxy(AMQP)
    yield proxy
    proxy.close()


@pytest.fixture
def unsteady(proxy):
    with connect(proxy.connection_string, retry_total=5) as client:
        yield client


def test_a_sender_comes_back(proxy, unsteady, client, queue):
    with unsteady.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage("before"))
        assert proxy.cut() == 1
        sender.send_messages(ServiceBusMessage("after"))
    with client.get_queue_receiver(queue) as receiver:
        assert [text(m) for m in take(receiver, 2)] == ["before", "after"]


def test_a_receiver_comes_back(proxy, unsteady, client, queue):
    with unsteady.get_queue_receiver(queue) as receiver, client.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage("before"))
        receiver.complete_message(take(receiver, 1)[0])
        assert proxy.cut() == 1
        sender.send_messages(ServiceBusMessage("after"))
        [message] = take(receiver, 1)
        assert text(message) == "after"
        receiver.complete_message(message)


def test_a_waiting_receiver_comes_back(proxy, unsteady, client, make_queue):
    # What is handed to a connection that is already dead comes back with the lock.
    queue = make_queue(lock_duration=timedelta(seconds=5))
    with unsteady.get_queue_receiver(queue) as receiver, client.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage("first"))
        receiver.complete_message(take(receiver, 1)[0])
        cut = threading.Timer(0.5, lambda: (proxy.cut(), sender.send_messages(ServiceBusMessage("second"))))
        cut.start()
        assert text(take(receiver, 1)[0]) == "second"
        cut.join()


def test_a_message_held_over_a_lost_connection_can_be_completed(proxy, unsteady, client, queue, admin):
    with client.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage("held"))
    with unsteady.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        proxy.cut()
        # The lock is the queue's, not the connection's: the SDK completes it by its token.
        receiver.complete_message(message)
    assert admin.get_queue_runtime_properties(queue).total_message_count == 0


def test_a_session_is_free_after_its_connection_is_lost(proxy, unsteady, client, make_queue):
    queue = make_queue(requires_session=True)
    with client.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage("x", session_id="a"))
    holder = unsteady.get_queue_receiver(queue, session_id="a")
    take(holder, 1)
    proxy.refuse(True)
    proxy.cut()
    with connect(retry_total=8) as other, other.get_queue_receiver(queue, session_id="a") as receiver:
        assert text(take(receiver, 1)[0]) == "x"
    holder.close()


def test_an_outage_is_survived(proxy, client, queue):
    with connect(proxy.connection_string, retry_total=20, retry_backoff_factor=0.2, retry_mode="fixed") as unsteady:
        with unsteady.get_queue_sender(queue) as sender:
            sender.send_messages(ServiceBusMessage("before"))
            proxy.refuse(True)
            proxy.cut()
            threading.Timer(1, proxy.refuse, [False]).start()
            sender.send_messages(ServiceBusMessage("after"))
    with client.get_queue_receiver(queue) as receiver:
        assert [text(m) for m in take(receiver, 2)] == ["before", "after"]
