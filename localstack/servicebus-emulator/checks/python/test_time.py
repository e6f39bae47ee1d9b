"""Scheduled messages, time to live, duplicate detection."""

from datetime import datetime, timedelta, timezone

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusMessageState, ServiceBusSubQueue
from azure.servicebus.exceptions import ServiceBusError

from conftest import eventually, nothing, take, text


def in_seconds(seconds):
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def test_a_scheduled_message_comes_when_it_is_due(client, queue):
    due = in_seconds(2)
    with client.get_queue_sender(queue) as sender, client.get_queue_receiver(queue) as receiver:
        [number] = sender.schedule_messages(ServiceBusMessage("later"), due)
        sender.send_messages(ServiceBusMessage("now"))
        assert text(take(receiver, 1)[0]) == "now"
        [peeked] = receiver.peek_messages(sequence_number=number)
        assert peeked.state == ServiceBusMessageState.SCHEDULED
        assert abs(peeked.scheduled_enqueue_time_utc - due) < timedelta(seconds=1)
        [message] = take(receiver, 1)
        assert datetime.now(timezone.utc) >= due - timedelta(milliseconds=5)
        assert text(message) == "later"


def test_a_property_schedules_as_well(client, queue):
    due = in_seconds(1.5)
    with client.get_queue_sender(queue) as sender, client.get_queue_receiver(queue) as receiver:
        sender.send_messages(ServiceBusMessage("later", scheduled_enqueue_time_utc=due))
        take(receiver, 1)
        assert datetime.now(timezone.utc) >= due - timedelta(milliseconds=5)


def test_several_are_scheduled_at_once_and_come_in_order_of_time(client, queue):
    with client.get_queue_sender(queue) as sender, client.get_queue_receiver(queue) as receiver:
        numbers = sender.schedule_messages([ServiceBusMessage("c"), ServiceBusMessage("d")], in_seconds(1.5))
        assert len(set(numbers)) == 2
        sender.schedule_messages(ServiceBusMessage("a"), in_seconds(0.5))
        assert [text(m) for m in take(receiver, 3)] == ["a", "c", "d"]


def test_a_cancelled_message_never_comes(client, queue):
    with client.get_queue_sender(queue) as sender, client.get_queue_receiver(queue) as receiver:
        numbers = sender.schedule_messages([ServiceBusMessage("never"), ServiceBusMessage("never")], in_seconds(1))
        sender.cancel_scheduled_messages(numbers)
        sender.schedule_messages(ServiceBusMessage("after"), in_seconds(1.2))
        assert text(take(receiver, 1)[0]) == "after"
        assert [text(m) for m in receiver.peek_messages(sequence_number=1, max_message_count=5)] == ["after"]


def test_an_unknown_number_cannot_be_cancelled(client, queue):
    with client.get_queue_sender(queue) as sender:
        with pytest.raises(ServiceBusError):
            sender.cancel_scheduled_messages([4711])


def test_an_expired_message_is_gone(client, queue, admin):
    with client.get_queue_sender(queue) as sender, client.get_queue_receiver(queue) as receiver:
        sender.send_messages(ServiceBusMessage("short", time_to_live=timedelta(seconds=1)))
        eventually(lambda: admin.get_queue_runtime_properties(queue).total_message_count == 0)
        sender.send_messages(ServiceBusMessage("next"))
        assert text(take(receiver, 1)[0]) == "next"


def test_an_expired_message_becomes_a_dead_letter_where_the_queue_says_so(client, make_queue):
    queue = make_queue(dead_lettering_on_message_expiration=True, default_message_time_to_live=timedelta(seconds=1))
    with client.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage("short"))
    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as letters:
        [letter] = take(letters, 1)
        assert text(letter) == "short"
        assert letter.dead_letter_reason == "TTLExpiredException"


def test_a_locked_message_outlives_its_time_to_live(client, queue):
    with client.get_queue_sender(queue) as sender, client.get_queue_receiver(queue) as receiver:
        sender.send_messages(ServiceBusMessage("short", time_to_live=timedelta(seconds=1)))
        [message] = take(receiver, 1)
        eventually(lambda: datetime.now(timezone.utc) > message.expires_at_utc)
        receiver.complete_message(message)


def test_duplicates_within_the_window_are_swallowed(client, make_queue):
    queue = make_queue(requires_duplicate_detection=True, duplicate_detection_history_time_window=timedelta(seconds=20))
    with client.get_queue_sender(queue) as sender, client.get_queue_receiver(queue) as receiver:
        for body, id in (("first", "a"), ("again", "a"), ("other", "b")):
            sender.send_messages(ServiceBusMessage(body, message_id=id))
        sender.send_messages([ServiceBusMessage("batch again", message_id="b"), ServiceBusMessage("third", message_id="c")])
        messages = take(receiver, 3)
        assert [text(m) for m in messages] == ["first", "other", "third"]
        for message in messages:
            receiver.complete_message(message)
        # A completed message's id is remembered.
        sender.send_messages([ServiceBusMessage("still", message_id="a"), ServiceBusMessage("fourth", message_id="d")])
        assert text(take(receiver, 1)[0]) == "fourth"
        nothing(receiver, quiet=0.2)


def test_a_queue_without_duplicate_detection_keeps_both(client, queue):
    with client.get_queue_sender(queue) as sender, client.get_queue_receiver(queue) as receiver:
        sender.send_messages([ServiceBusMessage("a", message_id="same"), ServiceBusMessage("b", message_id="same")])
        assert [text(m) for m in take(receiver, 2)] == ["a", "b"]
