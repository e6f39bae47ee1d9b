//! What is read of URLs, and what is refused.
#![allow(clippy::unwrap_used)]

use super::*;

fn parse(url: &str) -> Result<Config> {
    Config::parse(&ConnectUrl::parse(url).unwrap())
}

fn key(config: &Config) -> (&str, &str) {
    match &config.credential {
        Credential::Key { name, key } => (name, key.reveal()),
        _ => ("", ""),
    }
}

#[test]
fn every_part_is_read() {
    let c = parse("servicebus://Root:a%2Bb%2F%3D@shop.servicebus.windows.net?max_message_size=1MiB&connect_timeout=2s")
        .unwrap();
    assert_eq!((c.tls, &*c.host, c.port, c.max_message_size), (true, "shop.servicebus.windows.net", 5671, 1 << 20));
    assert_eq!(key(&c), ("Root", "a+b/="));
    assert_eq!(c.management, ManagementEndpoint { tls: true, host: c.host.clone(), port: 443 });
    let c = parse("servicebus://r:k@localhost:5673?emulator=true&management=http://other:1/").unwrap();
    assert_eq!((c.tls, c.port), (false, 5673));
    assert_eq!(c.management, ManagementEndpoint { tls: false, host: "other".into(), port: 1 });
    let c = parse("servicebus://r:k@localhost?emulator=true").unwrap();
    assert_eq!(c.management, ManagementEndpoint { tls: false, host: "localhost".into(), port: 5300 });
}

#[test]
fn rest_goes_to_one_place() {
    let c = parse("servicebus://r:k@h?transport=rest&poll=20s").unwrap();
    assert_eq!((c.transport, c.poll, c.management.port), (Transport::Rest, Duration::from_secs(20), 443));
    let c = parse("servicebus://r:k@localhost:5301?emulator=true&transport=rest").unwrap();
    assert_eq!(c.management, ManagementEndpoint { tls: false, host: "localhost".into(), port: 5301 });
    assert_eq!(parse("servicebus://h:5671").unwrap().management.port, 443);
}

#[test]
fn websockets_go_to_the_port_of_https() {
    let c = parse("servicebus://r:k@h?transport=websocket").unwrap();
    assert_eq!((c.transport, c.tls, c.port, c.management.port), (Transport::Websocket, true, 443, 443));
    let c = parse("servicebus://r:k@localhost?emulator=true&transport=websocket").unwrap();
    assert_eq!((c.tls, c.port, c.management.port), (false, 5300, 5300));
    let c = parse("servicebus://r:k@h:8443?transport=websocket").unwrap();
    assert_eq!((c.tls, c.port, c.management.port), (true, 8443, 8443));
    assert_eq!(parse("servicebus://r:k@h?tls=false&transport=websocket").unwrap().port, 80);
    // As the SDKs for .NET have it.
    let text = "Endpoint=sb://h:5671;SharedAccessKeyName=r;SharedAccessKey=k;TransportType=AmqpWebSockets";
    let c = parse(&format!("servicebus://?connection_string={text}")).unwrap();
    assert_eq!((c.transport, c.port), (Transport::Websocket, 443));
    let c = parse(&format!("servicebus://?connection_string={text}&transport=amqp")).unwrap();
    assert_eq!((c.transport, c.port), (Transport::Amqp, 5671));
}

#[test]
fn connection_strings_stand_in_the_url_as_they_are() {
    let text = "Endpoint=sb://shop.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey=a+b/c=";
    let c = parse(&format!("servicebus://?connection_string={text}")).unwrap();
    assert_eq!((&*c.host, c.port, c.tls), ("shop.servicebus.windows.net", 5671, true));
    assert_eq!(key(&c), ("Root", "a+b/c="));
    let c = parse(&format!("servicebus://?connection_string={text};UseDevelopmentEmulator=true")).unwrap();
    assert_eq!((c.tls, c.port, c.management.port, c.management.tls), (false, 5672, 5300, false));
}

#[test]
fn a_key_or_token_of_one_entity_opens_that_entity() {
    let text = "Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey=k;EntityPath=Orders";
    let c = parse(&format!("servicebus://?connection_string={text}")).unwrap();
    for path in ["orders", "orders/Subscriptions/a", "ORDERS/$DeadLetterQueue", "orders/$management"] {
        assert!(c.admits(path).is_ok(), "{path}");
    }
    for path in ["", "orders2", "order", "other/orders"] {
        let e = c.admits(path).unwrap_err();
        assert!(e.kind() == ErrorKind::PermissionDenied && e.to_string().contains("\"Orders\" alone"), "{e}");
    }
    let token = |sr: &str| format!("servicebus://h?sas_token=SharedAccessSignature%20sr={sr}%26sig=x%26se=1%26skn=r");
    assert_eq!(parse(&token("sb%253A%252F%252Fh%252Forders%252F")).unwrap().entity.as_deref(), Some("orders"));
    for namespace in ["sb%253A%252F%252Fh", "sb%253A%252F%252Fh%252F", "x"] {
        assert_eq!(parse(&token(namespace)).unwrap().entity, None, "{namespace}");
    }
    assert!(parse("servicebus://r:k@h").unwrap().admits("any").is_ok());
}

#[test]
fn tokens() {
    let c = parse("servicebus://h?sas_token=SharedAccessSignature%20sr=x%26sig=a%252B%26se=1%26skn=r").unwrap();
    let Credential::Token(token) = c.credential else { panic!("no token") };
    assert_eq!(token.reveal(), "SharedAccessSignature sr=x&sig=a%2B&se=1&skn=r");
}

#[test]
fn signatures_stand_in_the_url_as_they_are() {
    let signature = "SharedAccessSignature sr=sb%3A%2F%2Fshop.servicebus.windows.net%2Forders&sig=a%2Bb%3D&se=1&skn=r";
    let string = format!("Endpoint=sb://shop.servicebus.windows.net/;SharedAccessSignature={signature}");
    for url in [
        format!("servicebus://?connection_string={string}"),
        format!("servicebus://?connection_string={string}&transport=rest"),
        format!("servicebus://?transport=rest&connection_string={string};EntityPath=orders"),
        format!("servicebus://shop.servicebus.windows.net?sas_token={signature}&transport=rest"),
    ] {
        let c = parse(&url).unwrap();
        let Credential::Token(token) = &c.credential else { panic!("no token in {url}") };
        assert_eq!((token.reveal(), &*c.host), (signature, "shop.servicebus.windows.net"), "{url}");
        assert_eq!(c.transport == Transport::Rest, url.contains("rest"));
        assert_eq!(c.entity.as_deref(), Some("orders"));
    }
    // A field of a signature without one is a parameter like others.
    let e = parse("servicebus://r:k@h?transport=rest&sig=s3cret").map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("parameter 2 is unknown") && !e.to_string().contains("s3cret"), "{e}");
}

#[test]
fn addresses_of_ipv6() {
    let c = parse("servicebus://r:k@[::1]:5673?emulator=true&management=http://[::1]:5300").unwrap();
    assert_eq!((&*c.host, &*c.management.host, c.management.port), ("::1", "::1", 5300));
    for (endpoint, port) in [("sb://[::1]:5673", 5673), ("sb://[::1]/", 5672)] {
        let text = format!("Endpoint={endpoint};SharedAccessKeyName=r;SharedAccessKey=k;UseDevelopmentEmulator=true");
        let c = parse(&format!("servicebus://?connection_string={text}")).unwrap();
        assert_eq!((&*c.host, c.port), ("::1", port));
    }
}

#[test]
fn wrong_parameters_say_what_is_right_and_show_no_value() {
    for (url, word) in [
        ("servicebus://u:s3cret@h?prefetch=s3cret", "known are connection_string"),
        ("servicebus://u:s3cret@h?max_message_size=s3cret", "256KiB"),
        ("servicebus://u:s3cret@h?tls=s3cret", "true or false"),
        ("servicebus://u:s3cret@h?management=s3cret", "http[s]://"),
        ("servicebus://u:s3cret@h?transport=s3cret", "amqp, websocket or rest"),
        ("servicebus://u:s3cret@h?poll=0s", "60s"),
        ("servicebus://u:s3cret@h?sas_token=s3cret", "one of them"),
        ("servicebus://s3cret@h", "go together"),
        ("servicebus://?tls=false", "a namespace"),
        ("servicebus://?connection_string=Endpoint=s3cret", "Endpoint=sb://"),
        ("servicebus://u:s3cret@h?tls=false&cacert=a", "needs TLS"),
    ] {
        let e = parse(url).map(|_| ()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::ConfigInvalid);
        assert!(e.to_string().contains(word) && !format!("{e:?}").contains("s3cret"), "{url}: {e}");
    }
}
