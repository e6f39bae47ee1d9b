"""RPC as RabbitMQ's tutorial has it, and by direct reply-to: URL QUEUE. Fails unless every answer is right.

https://www.rabbitmq.com/tutorials/tutorial-six-python
"""

import json
import sys
import uuid

import pika

PATIENCE = 120


class RpcClient:
    def __init__(self, url, direct):
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.answers, self.seen = {}, set()
        if direct:
            self.replies = "amq.rabbitmq.reply-to"
        else:
            self.replies = self.channel.queue_declare(queue="", exclusive=True).method.queue
        self.channel.basic_consume(self.replies, self.take, auto_ack=True)

    def take(self, channel, method, properties, body):
        assert properties.correlation_id not in self.seen, "an answer came twice"
        self.seen.add(properties.correlation_id)
        self.answers[properties.correlation_id] = (properties, body)

    def call(self, queue, body):
        correlation = str(uuid.uuid4())
        properties = pika.BasicProperties(
            reply_to=self.replies,
            correlation_id=correlation,
            content_type="application/json",
            content_encoding="utf-8",
        )
        self.channel.basic_publish("", queue, json.dumps(body).encode(), properties)
        self.connection.process_data_events(time_limit=0)
        waited = 0
        while correlation not in self.answers:
            assert waited < PATIENCE, f"no answer within {PATIENCE} s"
            self.connection.process_data_events(time_limit=1)
            waited += 1
        return self.answers.pop(correlation)


def main(url, queue):
    for direct in (False, True):
        client = RpcClient(url, direct)
        for n in range(5):
            properties, body = client.call(queue, {"n": n})
            # A client that decodes by the encoding must be able to: none, or the one of the body.
            assert properties.content_encoding in (None, "utf-8"), properties.content_encoding
            assert properties.content_type == "application/json", properties.content_type
            assert json.loads(body.decode("utf-8"))["n"] == n * n, body
        properties, body = client.call(queue, {"n": "no number"})
        assert properties.type == "polybus.reply.error", properties
        assert json.loads(body)["kind"] == "malformed", body
        # What comes twice comes soon.
        client.connection.process_data_events(time_limit=1)
        client.connection.close()


main(*sys.argv[1:])
