"""Request and reply with the official SDK: QUEUE REPLIES SESSION_REPLIES. Fails unless every answer is right.

https://learn.microsoft.com/azure/service-bus-messaging/message-sessions#request-response-pattern
"""

import json
import os
import sys
import uuid

from azure.servicebus import ServiceBusClient, ServiceBusMessage

PATIENCE = 120


def take(receiver):
    messages = receiver.receive_messages(max_message_count=1, max_wait_time=PATIENCE)
    assert len(messages) == 1, f"no answer within {PATIENCE} s"
    receiver.complete_message(messages[0])
    return messages[0]


def check(message, request, n):
    # The answer names the request by its correlation id, or by its id where it had none.
    assert message.correlation_id == (request.correlation_id or request.message_id), message.correlation_id
    assert message.content_type == "application/json", message.content_type
    assert message.raw_amqp_message.properties.content_encoding is None
    assert json.loads(b"".join(message.body).decode("utf-8"))["n"] == n * n


def request(n, **fields):
    return ServiceBusMessage(
        json.dumps({"n": n}), message_id=str(uuid.uuid4()), content_type="application/json", **fields
    )


def main(queue, replies, session_replies):
    client = ServiceBusClient.from_connection_string(os.environ["POLYBUS_SERVICEBUS_CONNECTION_STRING"])
    with client, client.get_queue_sender(queue) as sender:
        with client.get_queue_receiver(replies) as receiver:
            for n in range(5):
                correlation = str(uuid.uuid4()) if n % 2 else None
                asked = request(n, reply_to=replies, correlation_id=correlation)
                sender.send_messages(asked)
                check(take(receiver), asked, n)
        # The session in which this program waits among others on one queue.
        for n in range(3):
            session = f"waiter-{n}"
            asked = request(n, reply_to=session_replies, reply_to_session_id=session)
            sender.send_messages(asked)
            with client.get_queue_receiver(session_replies, session_id=session) as receiver:
                message = take(receiver)
                assert message.session_id == session, message.session_id
                check(message, asked, n)


main(*sys.argv[1:])
