"""Sessions: named, next available, held, state, lock."""

from datetime import datetime, timedelta, timezone

import pytest
from azure.servicebus import NEXT_AVAILABLE_SESSION, AutoLockRenewer, ServiceBusMessage, ServiceBusSubQueue
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    ServiceBusError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)

from conftest import connect, eventually, nothing, take, text


@pytest.fixture
def sessions(make_queue):
    return make_queue(requires_session=True)


@pytest.fixture
def send(client, sessions):
    def send(session, *bodies):
        with client.get_queue_sender(sessions) as sender:
            sender.send_messages([ServiceBusMessage(body, session_id=session) for body in bodies])

    return send


def test_a_named_session_gets_its_messages_only(client, sessions, send):
    send("a", "a1", "a2")
    send("b", "b1")
    with client.get_queue_receiver(sessions, session_id="b") as receiver:
        assert receiver.session.session_id == "b"
        assert receiver.session.locked_until_utc > datetime.now(timezone.utc)
        [message] = take(receiver, 1)
        assert (text(message), message.session_id) == ("b1", "b")
        receiver.complete_message(message)
        nothing(receiver, quiet=0.2)
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        messages = take(receiver, 2)
        assert [text(m) for m in messages] == ["a1", "a2"]
        for message in messages:
            receiver.complete_message(message)


def test_the_next_available_session_is_one_with_messages(client, sessions, send):
    send("only", "x")
    with client.get_queue_receiver(sessions, session_id=NEXT_AVAILABLE_SESSION, max_wait_time=5) as receiver:
        assert receiver.session.session_id == "only"
        receiver.complete_message(take(receiver, 1)[0])


def test_next_available_receivers_get_different_sessions(client, sessions, send):
    for session in "abc":
        send(session, session)
    receivers = [client.get_queue_receiver(sessions, session_id=NEXT_AVAILABLE_SESSION, max_wait_time=5) for _ in range(3)]
    try:
        assert sorted(text(take(receiver, 1)[0]) for receiver in receivers) == ["a", "b", "c"]
    finally:
        for receiver in receivers:
            receiver.close()


def test_no_session_available_is_a_timeout(sessions):
    with connect(retry_total=0) as client:
        with pytest.raises(OperationTimeoutError):
            with client.get_queue_receiver(sessions, session_id=NEXT_AVAILABLE_SESSION, max_wait_time=1) as receiver:
                receiver.receive_messages(max_wait_time=1)


def test_a_session_that_is_held_cannot_be_locked(sessions, send):
    send("a", "x")
    with connect(retry_total=0) as client, client.get_queue_receiver(sessions, session_id="a") as holder:
        assert holder.session.session_id == "a"
        with pytest.raises(SessionCannotBeLockedError):
            with client.get_queue_receiver(sessions, session_id="a"):
                pass
        # The holder has lost nothing.
        holder.complete_message(take(holder, 1)[0])


def test_a_closed_receiver_leaves_its_session_to_the_next_one(client, sessions, send):
    send("a", "x")
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        [message] = take(receiver, 1)
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        [message] = take(receiver, 1)
        assert text(message) == "x"
        receiver.complete_message(message)


def test_order_is_kept_after_an_abandon(client, sessions, send):
    send("a", "1", "2", "3")
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        [message] = take(receiver, 1)
        receiver.abandon_message(message)
        seen = []
        for _ in range(3):
            [message] = take(receiver, 1)
            seen.append(text(message))
            receiver.complete_message(message)
        assert seen == ["1", "2", "3"]


def test_state_is_kept_beyond_the_receiver(client, sessions):
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        assert not receiver.session.get_state()
        receiver.session.set_state(b"\x00half way")
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        assert receiver.session.get_state() == b"\x00half way"
        receiver.session.set_state(None)
        assert not receiver.session.get_state()


def test_a_renewed_session_lock_lasts_longer(client, sessions):
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        first = receiver.session.locked_until_utc
        renewed = eventually(lambda: (until := receiver.session.renew_lock()) > first and until)
        assert receiver.session.locked_until_utc == renewed


def test_the_renewer_holds_a_session_past_its_lock(client, make_queue):
    # It looks once a second and opens a link of its own first: five seconds would be too few for a busy machine.
    queue = make_queue(requires_session=True, lock_duration=timedelta(seconds=8))
    with client.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage("x", session_id="a"))
    with AutoLockRenewer() as renewer, client.get_queue_receiver(queue, session_id="a") as receiver:
        first = receiver.session.locked_until_utc
        renewer.register(receiver, receiver.session, max_lock_renewal_duration=30)
        [message] = take(receiver, 1)
        eventually(lambda: datetime.now(timezone.utc) > first + timedelta(seconds=1), wait=20)
        receiver.complete_message(message)


def test_a_session_lock_that_ran_out_is_lost(client, make_queue):
    queue = make_queue(requires_session=True, lock_duration=timedelta(seconds=8))
    with client.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage("x", session_id="a"))
    with client.get_queue_receiver(queue, session_id="a") as slow:
        [late] = take(slow, 1)
        until = slow.session.locked_until_utc
        eventually(lambda: datetime.now(timezone.utc) > until)
        with pytest.raises(SessionLockLostError):
            slow.complete_message(late)
        with client.get_queue_receiver(queue, session_id="a") as other:
            [again] = take(other, 1)
            assert text(again) == "x"
            # The service refuses as well, whatever the SDK's clock says.
            slow.session._locked_until_utc = until + timedelta(minutes=1)
            with pytest.raises(ServiceBusError):
                slow.session.renew_lock()
            other.complete_message(again)


def test_peek_in_a_session_shows_that_session(client, sessions, send):
    send("a", "a1")
    send("b", "b1", "b2")
    with client.get_queue_receiver(sessions, session_id="b") as receiver:
        assert [text(m) for m in receiver.peek_messages(max_message_count=5)] == ["b1", "b2"]


def test_a_deferred_message_belongs_to_its_session(client, sessions, send):
    send("a", "x")
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        [message] = take(receiver, 1)
        receiver.defer_message(message)
        [deferred] = receiver.receive_deferred_messages(message.sequence_number)
        receiver.complete_message(deferred)


def test_a_dead_letter_of_a_session_is_read_without_one(client, sessions, send):
    send("a", "x")
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        receiver.dead_letter_message(take(receiver, 1)[0], reason="r")
    with client.get_queue_receiver(sessions, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as letters:
        [letter] = take(letters, 1)
        assert (letter.session_id, letter.dead_letter_reason) == ("a", "r")
        letters.complete_message(letter)


def test_a_scheduled_message_comes_in_its_session(client, sessions):
    with client.get_queue_sender(sessions) as sender:
        sender.schedule_messages(ServiceBusMessage("x", session_id="a"), datetime.now(timezone.utc) + timedelta(seconds=1))
    with client.get_queue_receiver(sessions, session_id="a") as receiver:
        receiver.complete_message(take(receiver, 1, wait=4)[0])


def test_sessions_are_required_where_the_queue_says_so(client, sessions, queue):
    with client.get_queue_sender(sessions) as sender:
        with pytest.raises(ServiceBusError):
            sender.send_messages(ServiceBusMessage("without"))
    with pytest.raises(ServiceBusError):
        with client.get_queue_receiver(sessions) as receiver:
            receiver.receive_messages(max_wait_time=1)
    with pytest.raises(ServiceBusError):
        with client.get_queue_receiver(queue, session_id="a") as receiver:
            receiver.receive_messages(max_wait_time=1)


def test_an_empty_state_clears_it_and_the_session_is_listed_no_more(client, sessions):
    with client.get_queue_receiver(sessions, session_id="stated") as receiver:
        receiver.session.set_state("something")
        assert list(client.list_queue_sessions(sessions)) == ["stated"]
        receiver.session.set_state(b"")
        assert receiver.session.get_state() in (None, b"")
    assert list(client.list_queue_sessions(sessions)) == []


def test_sessions_are_listed_by_when_their_state_was_set(client, sessions, send):
    send("messages", "x")
    with client.get_queue_receiver(sessions, session_id="old") as receiver:
        receiver.session.set_state("1")
    between = datetime.now(timezone.utc) + timedelta(milliseconds=50)
    eventually(lambda: datetime.now(timezone.utc) > between)
    with client.get_queue_receiver(sessions, session_id="new") as receiver:
        receiver.session.set_state("2")
    assert sorted(client.list_queue_sessions(sessions)) == ["messages", "new", "old"]
    assert list(client.list_queue_sessions(sessions, state_updated_after=between)) == ["new"]
