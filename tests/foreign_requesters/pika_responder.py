"""The server of RabbitMQ's RPC tutorial: URL QUEUE. Says `ready` once it consumes, and ends with its standard input."""

import json
import sys
import threading

import pika


def answer(channel, method, properties, body):
    number = json.loads(body)["n"]
    channel.basic_publish(
        "",
        properties.reply_to,
        json.dumps({"n": number * number}),
        pika.BasicProperties(correlation_id=properties.correlation_id),
    )
    channel.basic_ack(method.delivery_tag)


def main(url, queue):
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, answer)
    print("ready", flush=True)

    def end():
        sys.stdin.read()
        connection.add_callback_threadsafe(channel.stop_consuming)

    threading.Thread(target=end, daemon=True).start()
    channel.start_consuming()
    connection.close()


main(*sys.argv[1:])
