"""Sending and receiving."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusReceiveMode
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageBodyType
from azure.servicebus.exceptions import MessageSizeExceededError

from conftest import connect, nothing, take, text


def send(client, queue, *messages):
    with client.get_queue_sender(queue) as sender:
        sender.send_messages([m if isinstance(m, ServiceBusMessage) else ServiceBusMessage(m) for m in messages])


def test_one_message_arrives(client, queue):
    with client.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage("hello"))
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        assert text(message) == "hello"
        assert message.delivery_count == 0
        assert message.sequence_number == 1
        assert message.enqueued_time_utc is not None
        assert message.locked_until_utc > message.enqueued_time_utc
        receiver.complete_message(message)


def test_every_property_arrives_as_it_was_sent(client, queue):
    properties = {
        "text": "naïve ☃", "int": 7, "negative": -1, "float": 0.5, "yes": True, "no": False, "uuid": uuid.uuid4(),
    }
    sent = ServiceBusMessage(
        b"\x00\x01\xff", application_properties=properties, message_id="id-1", correlation_id="c-1", subject="order.placed",
        content_type="application/json", to="somewhere", reply_to="back", reply_to_session_id="s-2",
        time_to_live=timedelta(seconds=300),
    )
    send(client, queue, sent)
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        assert b"".join(message.body) == b"\x00\x01\xff"
        found = {k.decode(): v for k, v in message.application_properties.items()}
        assert found == {k: v.encode() if isinstance(v, str) else v for k, v in properties.items()}
        assert message.message_id == "id-1"
        assert message.correlation_id == "c-1"
        assert message.subject == "order.placed"
        assert message.content_type == "application/json"
        assert message.to == "somewhere"
        assert message.reply_to == "back"
        assert message.reply_to_session_id == "s-2"
        assert message.time_to_live == timedelta(seconds=300)
        assert message.expires_at_utc - message.enqueued_time_utc == timedelta(seconds=300)


@pytest.mark.parametrize("body", [b"", b"x", bytes(range(256))], ids=["empty", "one byte", "all bytes"])
def test_bodies_are_bytes(client, queue, body):
    send(client, queue, ServiceBusMessage(body))
    with client.get_queue_receiver(queue) as receiver:
        assert b"".join(take(receiver, 1)[0].body) == body


@pytest.mark.parametrize("field, value", [("value_body", {"a": [1, None, "x"]}), ("sequence_body", [["a", 1], ["b"]])])
def test_amqp_values_and_sequences_arrive(client, queue, field, value):
    with client.get_queue_sender(queue) as sender:
        sender.send_messages(AmqpAnnotatedMessage(**{field: value}))
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        if field == "value_body":
            assert message.body_type == AmqpMessageBodyType.VALUE
            assert message.body == {b"a": [1, None, b"x"]}
        else:
            assert message.body_type == AmqpMessageBodyType.SEQUENCE
            assert list(message.body) == [[b"a", 1], [b"b"]]


def test_a_list_arrives_in_order(client, queue):
    send(client, queue, *(str(i) for i in range(200)))
    with client.get_queue_receiver(queue) as receiver:
        messages = take(receiver, 200)
        assert [text(m) for m in messages] == [str(i) for i in range(200)]
        assert [m.sequence_number for m in messages] == list(range(1, 201))


def test_a_batch_is_filled_until_it_refuses(client, queue):
    with client.get_queue_sender(queue) as sender:
        batch, count = sender.create_message_batch(), 0
        assert batch.max_size_in_bytes == 256 * 1024
        with pytest.raises(MessageSizeExceededError):
            while True:
                batch.add_message(ServiceBusMessage("x" * 10_000))
                count += 1
        assert count > 20
        sender.send_messages(batch)
    with client.get_queue_receiver(queue) as receiver:
        assert len(take(receiver, count)) == count
        nothing(receiver)


def test_a_large_message_arrives_whole(client, queue):
    body = bytes(range(256)) * 1000
    send(client, queue, ServiceBusMessage(body))
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        assert b"".join(message.body) == body
        receiver.complete_message(message)


def test_many_large_messages_arrive_whole(client, queue):
    with client.get_queue_sender(queue) as sender:
        for i in range(8):
            sender.send_messages(ServiceBusMessage(bytes([i]) * 200_000))
    with client.get_queue_receiver(queue, prefetch_count=8) as receiver:
        for i, message in enumerate(take(receiver, 8)):
            assert b"".join(message.body) == bytes([i]) * 200_000
            receiver.complete_message(message)


def test_a_message_over_the_limit_is_refused_and_the_next_one_goes(client, queue):
    with client.get_queue_sender(queue) as sender:
        with pytest.raises(MessageSizeExceededError):
            sender.send_messages(ServiceBusMessage(b"x" * 300_000))
        sender.send_messages(ServiceBusMessage("fits"))
    with client.get_queue_receiver(queue) as receiver:
        assert text(take(receiver, 1)[0]) == "fits"


def test_receive_and_delete_leaves_nothing(client, queue, admin):
    send(client, queue, "a", "b")
    with client.get_queue_receiver(queue, receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE) as receiver:
        assert [text(m) for m in take(receiver, 2)] == ["a", "b"]
    assert admin.get_queue_runtime_properties(queue).total_message_count == 0


def test_a_waiting_receiver_gets_what_comes(client, queue):
    with client.get_queue_receiver(queue) as receiver:
        nothing(receiver, quiet=0.2)
        send(client, queue, "later")
        assert text(take(receiver, 1)[0]) == "later"


def test_iterating_ends_when_nothing_comes(client, queue):
    send(client, queue, *"abc")
    with client.get_queue_receiver(queue, max_wait_time=1) as receiver:
        seen = []
        for message in receiver:
            seen.append(text(message))
            receiver.complete_message(message)
    assert seen == ["a", "b", "c"]


def test_closing_drains_and_gives_back_what_was_prefetched(client, queue):
    send(client, queue, *"abcde")
    with client.get_queue_receiver(queue, prefetch_count=5) as receiver:
        [first] = receiver.receive_messages(max_message_count=1, max_wait_time=5)
        receiver.complete_message(first)
    with client.get_queue_receiver(queue) as receiver:
        messages = take(receiver, 4, wait=5)
        assert [text(m) for m in messages] == ["b", "c", "d", "e"]


def test_two_receivers_share_a_queue(client, queue):
    with client.get_queue_receiver(queue) as first, client.get_queue_receiver(queue) as second:
        send(client, queue, *(str(i) for i in range(20)))
        both = take(first, 10) + take(second, 10)
        assert sorted(int(text(m)) for m in both) == list(range(20))
        for receiver, messages in ((first, both[:10]), (second, both[10:])):
            for message in messages:
                receiver.complete_message(message)
        nothing(first, quiet=0.2)


def test_peek_shows_without_locking(client, queue):
    send(client, queue, *"abc")
    with client.get_queue_receiver(queue) as receiver:
        assert [text(m) for m in receiver.peek_messages(max_message_count=2)] == ["a", "b"]
        assert [text(m) for m in receiver.peek_messages(max_message_count=5, sequence_number=2)] == ["b", "c"]
        messages = take(receiver, 3)
        assert [text(m) for m in messages] == ["a", "b", "c"]
        # Locked ones are seen, too.
        assert [text(m) for m in receiver.peek_messages(max_message_count=5, sequence_number=1)] == ["a", "b", "c"]
        for message in messages:
            receiver.complete_message(message)
        assert receiver.peek_messages(sequence_number=1) == []


def test_sixty_connections_at_once(client, queue):
    clients = [connect() for _ in range(60)]
    senders = [client.get_queue_sender(queue) for client in clients]
    try:
        with ThreadPoolExecutor(20) as pool:
            # Each opens its connection with the first message, and keeps it.
            for turn in range(2):
                list(pool.map(lambda sender: sender.send_messages(ServiceBusMessage(str(turn))), senders))
        with client.get_queue_receiver(queue) as receiver:
            assert [text(m) for m in take(receiver, 120)] == ["0"] * 60 + ["1"] * 60
    finally:
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda client: client.close(), clients))


def test_the_brokers_own_words_about_a_first_delivery(client, queue):
    send(client, queue, ServiceBusMessage("x"))
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        raw = message.raw_amqp_message
        names = {name.decode() if isinstance(name, bytes) else name for name in raw.annotations}
        assert names == {"x-opt-enqueued-time", "x-opt-sequence-number", "x-opt-locked-until"}
        assert not raw.header.first_acquirer
        assert message.state.name == "ACTIVE"
        receiver.complete_message(message)


def test_delivery_annotations_arrive(client, queue):
    sent = AmqpAnnotatedMessage(data_body=b"x", delivery_annotations={"own": "y"})
    with client.get_queue_sender(queue) as sender:
        sender.send_messages(sent)
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        found = {name.decode(): value for name, value in message.raw_amqp_message.delivery_annotations.items()}
        assert found["own"] in (b"y", "y") and "x-opt-lock-token" in found
