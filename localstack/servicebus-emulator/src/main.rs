//! `polybus-servicebus-emulator`: serves AMQP on the given address, with the queues named after it.

use polybus_servicebus_emulator::Shared;
use polybus_servicebus_emulator::broker::{Broker, Limits, QueueSettings};
use polybus_servicebus_emulator::clock::Clock;
use polybus_servicebus_emulator::faults::Faults;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:5672".to_owned());
    let broker = Broker::new(Clock::system(), Limits::default());
    for queue in arguments {
        broker.create_queue(&queue, QueueSettings::default())?;
    }
    let listener = TcpListener::bind(&address).await?;
    polybus_servicebus_emulator::amqp::serve(listener, None, Shared { broker, faults: Faults::default(), key: None })
        .await;
    Ok(())
}
