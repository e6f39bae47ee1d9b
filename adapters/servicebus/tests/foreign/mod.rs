//! An emulator in this process, and a producer that is not polybus.
#![allow(clippy::unwrap_used, dead_code)]

use std::{sync::Arc, time::Duration};

use polybus_core::{Bus, BusOptions, Registry, Topology, driver::Driver};
use polybus_servicebus::{
    Native, ServicebusConnector,
    fe2o3_amqp::{
        Sender,
        types::{
            messaging::{
                ApplicationProperties, Header, Message, MessageAnnotations, MessageId, Outcome, Priority, Properties,
            },
            primitives::{SimpleValue, Symbol, Value},
        },
    },
};
use polybus_servicebus_emulator::{
    Emulator, EmulatorOptions,
    auth::{AccessKey, Rights},
};

pub(crate) struct EmulatorSetup {
    pub(crate) emulator: Emulator,
    parameters: &'static str,
    login: &'static str,
}

impl EmulatorSetup {
    pub(crate) async fn new(parameters: &'static str) -> Self {
        Self { emulator: Emulator::start(EmulatorOptions::default()).await.unwrap(), parameters, login: "" }
    }

    /// An emulator that knows one key, with these rights only.
    pub(crate) async fn with_key(parameters: &'static str, rights: Rights) -> Self {
        let key = AccessKey::new("some", "secret").with_rights(rights);
        let options = EmulatorOptions { keys: vec![key], ..EmulatorOptions::default() };
        Self { emulator: Emulator::start(options).await.unwrap(), parameters, login: "some:secret@" }
    }

    pub(crate) fn url(&self, parameters: &str) -> String {
        let (amqp, http) = (self.emulator.amqp_addr(), self.emulator.http_addr());
        format!("servicebus://{}{amqp}?emulator=true&management=http://{http}{parameters}", self.login)
    }

    /// Declares nothing.
    pub(crate) async fn bus(&self, topology: Topology) -> Bus {
        Bus::new(self.driver().await, BusOptions::topology(topology)).unwrap()
    }

    /// A bus that declares nothing, and whose consumers give up soon after a refusal: they live through what is no
    /// refusal.
    pub(crate) async fn impatient_bus(&self, topology: Topology) -> Bus {
        let mut options = BusOptions::topology(topology);
        options.give_up_after = Duration::from_secs(1);
        Bus::new(self.driver().await, options).unwrap()
    }

    pub(crate) async fn driver(&self) -> Arc<dyn Driver> {
        Registry::new().with(ServicebusConnector).connect(&self.url(self.parameters)).await.unwrap()
    }

    pub(crate) async fn foreign(&self) -> ForeignProducer {
        let driver = Registry::new().with(ServicebusConnector).connect(&self.url("")).await.unwrap();
        ForeignProducer(Bus::new(driver, BusOptions::topology(Topology::new())).unwrap())
    }

    pub(crate) async fn stop(self) {
        self.emulator.stop().await;
    }
}

/// A message that polybus does not write.
pub(crate) struct ForeignMessage {
    header: Header,
    annotations: MessageAnnotations,
    properties: Properties,
    application: ApplicationProperties,
    body: Vec<u8>,
}

impl ForeignMessage {
    pub(crate) fn new(body: &str) -> Self {
        Self {
            header: Header { durable: true, ..Header::default() },
            annotations: MessageAnnotations::default(),
            properties: Properties::new(),
            application: ApplicationProperties::default(),
            body: body.into(),
        }
    }

    /// With everything that a producer may set.
    pub(crate) fn full() -> Self {
        let mut full = Self::new("x").id("m").property("p", "v");
        full.header = Header { durable: true, priority: Priority(7), ttl: Some(30_000), ..Header::default() };
        full.annotations.insert("x-own".into(), Value::String("annotation".into()));
        full.properties = Properties {
            user_id: Some(b"me".to_vec().into()),
            to: Some("them".into()),
            subject: Some("label".into()),
            reply_to: Some("answers".into()),
            correlation_id: Some(MessageId::String("c".into())),
            content_type: Some(Symbol::from("text/plain")),
            content_encoding: Some(Symbol::from("gzip")),
            reply_to_group_id: Some("rs".into()),
            ..full.properties
        };
        full
    }

    pub(crate) fn id(mut self, id: &str) -> Self {
        self.properties.message_id = Some(MessageId::String(id.into()));
        self
    }

    pub(crate) fn ttl(mut self, ttl: Duration) -> Self {
        self.header.ttl = Some(u32::try_from(ttl.as_millis()).unwrap());
        self
    }

    pub(crate) fn session(mut self, id: &str) -> Self {
        self.properties.group_id = Some(id.into());
        self
    }

    pub(crate) fn content_type(mut self, content_type: &str) -> Self {
        self.properties.content_type = Some(Symbol::from(content_type));
        self
    }

    pub(crate) fn property(mut self, name: &str, value: &str) -> Self {
        self.application.insert(name.into(), SimpleValue::String(value.into()));
        self
    }
}

/// The producer that is not polybus.
pub(crate) struct ForeignProducer(Bus);

impl ForeignProducer {
    pub(crate) async fn send(&self, path: &str, message: ForeignMessage) {
        self.send_all(path, [message]).await;
    }

    pub(crate) async fn send_all(&self, path: &str, messages: impl IntoIterator<Item = ForeignMessage>) {
        let mut session = self.0.native::<Native>().unwrap().session(path).await.unwrap();
        let mut sender = Sender::attach(&mut session, "foreign", path).await.unwrap();
        for message in messages {
            let ForeignMessage { header, annotations, properties, application, body } = message;
            let built = Message::builder()
                .header(header)
                .message_annotations(annotations)
                .properties(properties)
                .application_properties(application)
                .data(body)
                .build();
            assert!(matches!(sender.send(built).await.unwrap(), Outcome::Accepted(_)));
        }
        sender.close().await.unwrap();
        session.end().await.unwrap();
    }
}
