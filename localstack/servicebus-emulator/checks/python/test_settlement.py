"""What becomes of a message that was received under a lock."""

from datetime import datetime, timedelta, timezone

import pytest
from azure.servicebus import AutoLockRenewer, ServiceBusMessage, ServiceBusSubQueue
from azure.servicebus.exceptions import MessageAlreadySettled, MessageLockLostError, MessageNotFoundError

from conftest import eventually, nothing, take, text

SHORTEST_LOCK = timedelta(seconds=5)


@pytest.fixture
def send(client):
    def send(queue, *bodies):
        with client.get_queue_sender(queue) as sender:
            sender.send_messages([ServiceBusMessage(body) for body in bodies])

    return send


def test_a_completed_message_is_gone(client, queue, send, admin):
    send(queue, "a")
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        receiver.complete_message(message)
        with pytest.raises(MessageAlreadySettled):
            receiver.complete_message(message)
    assert admin.get_queue_runtime_properties(queue).total_message_count == 0


def test_an_abandoned_message_comes_back_with_a_higher_count(client, queue, send):
    send(queue, "a", "b")
    with client.get_queue_receiver(queue) as receiver:
        for count in range(3):
            [message] = take(receiver, 1)
            assert (text(message), message.delivery_count) == ("a", count)
            receiver.abandon_message(message)


def test_a_dead_letter_keeps_reason_and_description(client, queue, send):
    send(queue, "bad", "good")
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        receiver.dead_letter_message(message, reason="malformed", error_description="no such field: ☃")
        [good] = take(receiver, 1)
        assert text(good) == "good"
    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as letters:
        [letter] = take(letters, 1)
        assert text(letter) == "bad"
        assert letter.dead_letter_reason == "malformed"
        assert letter.dead_letter_error_description == "no such field: ☃"
        assert letter.dead_letter_source in (None, queue)
        letters.complete_message(letter)
        nothing(letters, quiet=0.2)


def test_too_many_deliveries_make_a_dead_letter(client, make_queue, send):
    queue = make_queue(max_delivery_count=2)
    send(queue, "a")
    with client.get_queue_receiver(queue) as receiver:
        for _ in range(2):
            receiver.abandon_message(take(receiver, 1)[0])
        nothing(receiver, quiet=0.2)
    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as letters:
        [letter] = take(letters, 1)
        assert letter.dead_letter_reason == "MaxDeliveryCountExceeded"


def test_a_deferred_message_is_received_by_its_number_only(client, queue, send):
    send(queue, "a", "b")
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        receiver.defer_message(message)
        [other] = take(receiver, 1)
        assert text(other) == "b"
        [deferred] = receiver.receive_deferred_messages(message.sequence_number)
        assert text(deferred) == "a"
        receiver.complete_message(deferred)
        with pytest.raises(MessageNotFoundError):
            receiver.receive_deferred_messages(message.sequence_number)


def test_a_deferred_message_can_be_dead_lettered(client, queue, send):
    send(queue, "a")
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        receiver.defer_message(message)
        [deferred] = receiver.receive_deferred_messages([message.sequence_number])
        receiver.dead_letter_message(deferred, reason="late", error_description="why")
    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as letters:
        [letter] = take(letters, 1)
        assert (letter.dead_letter_reason, letter.dead_letter_error_description) == ("late", "why")


def test_an_unknown_number_is_not_found(client, queue):
    with client.get_queue_receiver(queue) as receiver:
        with pytest.raises(MessageNotFoundError):
            receiver.receive_deferred_messages([4711])


def test_a_renewed_lock_lasts_longer(client, make_queue, send):
    queue = make_queue(lock_duration=SHORTEST_LOCK)
    send(queue, "a")
    with client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        first = message.locked_until_utc
        # The clock has to show another time than at the receipt.
        renewed = eventually(lambda: (until := receiver.renew_message_lock(message)) > first and until)
        assert message.locked_until_utc == renewed
        assert renewed - datetime.now(timezone.utc) <= SHORTEST_LOCK + timedelta(seconds=1)
        receiver.complete_message(message)


def test_the_renewer_holds_a_message_past_its_lock(client, make_queue, send):
    queue = make_queue(lock_duration=SHORTEST_LOCK)
    send(queue, "a")
    with AutoLockRenewer() as renewer, client.get_queue_receiver(queue) as receiver:
        [message] = take(receiver, 1)
        first = message.locked_until_utc
        renewer.register(receiver, message, max_lock_renewal_duration=30)
        with client.get_queue_receiver(queue) as other:
            nothing(other, quiet=7)
        assert datetime.now(timezone.utc) > first
        receiver.complete_message(message)


def test_a_message_whose_lock_ran_out_comes_back_and_cannot_be_settled(client, make_queue, send):
    queue = make_queue(lock_duration=SHORTEST_LOCK)
    send(queue, "a")
    with client.get_queue_receiver(queue) as slow, client.get_queue_receiver(queue) as other:
        [late] = take(slow, 1)
        [again] = take(other, 1)
        assert again.delivery_count == 1
        with pytest.raises(MessageLockLostError):
            slow.complete_message(late)
        with pytest.raises(MessageLockLostError):
            slow.renew_message_lock(late)
        other.complete_message(again)


def test_the_service_refuses_a_lost_lock_however_it_is_settled(client, make_queue, send):
    # Long enough for all the refusals to come before the other's locks run out.
    queue = make_queue(lock_duration=2 * SHORTEST_LOCK)
    send(queue, *"abcdef")
    # Without prefetch: it must not take them again when their locks run out.
    with client.get_queue_receiver(queue) as slow, client.get_queue_receiver(queue) as other:
        late = take(slow, 6)
        again = take(other, 6, wait=20)
        for message in late:
            # The SDK looks at its own clock first; told that there is time, it asks the service.
            message._expiry = again[0].locked_until_utc + timedelta(minutes=1)
        settle = [
            slow.complete_message, slow.abandon_message, slow.defer_message, slow.dead_letter_message, slow.renew_message_lock,
            # What the SDK does after a reconnect.
            lambda message: slow._settle_message_via_mgmt_link("completed", [message.lock_token]),
        ]
        for message, refused in zip(late, settle, strict=True):
            with pytest.raises(MessageLockLostError):
                refused(message)
        # The other's locks were not touched.
        for message in again:
            other.complete_message(message)
        nothing(other, quiet=0.2)


def test_dead_letters_can_be_abandoned_and_come_back(client, queue, send):
    send(queue, "a")
    with client.get_queue_receiver(queue) as receiver:
        receiver.dead_letter_message(take(receiver, 1)[0], reason="r")
    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as letters:
        letters.abandon_message(take(letters, 1)[0])
        [again] = take(letters, 1)
        assert again.dead_letter_reason == "r"
        letters.complete_message(again)
