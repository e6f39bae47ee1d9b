//! The two services behind the shop: the quotes, which ask the warehouse for its stock.

use std::time::Duration;

use polybus::{
    Address, Bus, Envelope, Event, Handler, HandlerContext, HandlerError,
    patterns::requests::{Refusal, Requests, Responder},
};
use serde::{Deserialize, Serialize};

use super::tree::MessageLog;

#[derive(Serialize, Deserialize)]
pub struct GetQuote {
    pub number: u64,
}

impl Event for GetQuote {
    const TYPE: &'static str = "quote.wanted";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
pub struct Quote {
    pub cents: u64,
}

impl Event for Quote {
    const TYPE: &'static str = "quote.made";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
struct GetStock {
    number: u64,
}

impl Event for GetStock {
    const TYPE: &'static str = "stock.wanted";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
struct Stock {
    pieces: u64,
}

impl Event for Stock {
    const TYPE: &'static str = "stock.counted";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
struct Quoted {
    cents: u64,
}

impl Event for Quoted {
    const TYPE: &'static str = "quote.noted";
    const VERSION: u32 = 1;
}

/// What becomes of a request, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Known,
    /// The warehouse fails at the first attempt.
    Flaky,
    /// Nobody sells it.
    Unknown,
    /// The quote takes longer than its caller waits.
    Slow,
}

impl Kind {
    pub fn of(number: u64) -> Self {
        match number % 10 {
            3 => Self::Slow,
            5 => Self::Unknown,
            7 => Self::Flaky,
            _ => Self::Known,
        }
    }
}

#[derive(Clone)]
pub struct Services {
    bus: Bus,
    warehouse: Requests,
    log: MessageLog,
}

impl Services {
    pub fn new(bus: &Bus, warehouse: Requests, log: &MessageLog) -> Self {
        Self { bus: bus.clone(), warehouse, log: log.clone() }
    }

    /// Answers `quote.wanted`. It sees the whole message, to note it.
    pub fn quotes(&self) -> impl Handler + use<> {
        Responder::new(&self.bus).message_handler(self.clone(), Self::quote)
    }

    async fn quote(self, _cx: HandlerContext, msg: Envelope) -> Result<Envelope, HandlerError> {
        self.log.note("quotes", &msg);
        let number = msg.decode::<GetQuote>().map_err(HandlerError::permanent)?.number;
        match Kind::of(number) {
            Kind::Unknown => return Err(Refusal::new("unknown-sku", format!("nobody sells {number}")).into()),
            Kind::Slow => tokio::time::sleep(Duration::from_secs(3)).await,
            _ => {}
        }
        let ask = Envelope::event(&GetStock { number })?;
        let stock = self.warehouse.call_with(Address::queue("stock"), ask).timeout(super::PATIENCE).await?;
        self.log.note("quotes", &stock);
        let cents = stock.decode::<Stock>()?.pieces * 10;
        if Kind::of(number) != Kind::Slow {
            self.bus.publish(Address::queue("ledger"), Envelope::event(&Quoted { cents })?).await?;
        }
        Ok(Envelope::event(&Quote { cents })?)
    }

    /// Answers `stock.wanted`.
    pub fn stock(&self) -> impl Handler + use<> {
        Responder::new(&self.bus).message_handler(self.log.clone(), async |log: MessageLog, cx, msg: Envelope| {
            log.note("warehouse", &msg);
            let number = msg.decode::<GetStock>().map_err(HandlerError::permanent)?.number;
            match (Kind::of(number), cx.attempt()) {
                (Kind::Flaky, 1) => Err("the shelf is locked".into()),
                _ => Ok(Envelope::event(&Stock { pieces: number })?),
            }
        })
    }

    pub async fn close(&self) {
        self.warehouse.close().await;
    }
}
