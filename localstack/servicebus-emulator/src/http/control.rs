//! The emulator's own requests, with which tests control it: `/$emulator/faults`, `…/clock`, `…/cloud`, `…/keys`. They
//! need no token.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::response::{self, Answer};
use crate::auth::{AccessRule, KeySet};
use crate::clock::Clock;
use crate::cloud::CloudRules;
use crate::faults::{BusyOperation, Faults};

/// The prefix of the paths.
pub(super) const PREFIX: &str = "$emulator/";
/// The largest body, far above any request.
pub(super) const MAX_BYTES: usize = 64 * 1024;

const MAX_ADVANCE_MS: u64 = 100 * 365 * 24 * 3_600_000;

/// The faults to set. An omitted field changes nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FaultsRequest {
    refuse_connections: Option<bool>,
    delay_ms: Option<u64>,
    drop_after_frames: Option<u32>,
    lose_settlements: Option<u64>,
    lose_answers: Option<u64>,
    refuse_renewals: Option<u64>,
    refuse_attaches: Option<u64>,
    server_busy: Option<BusyRequest>,
    drop_connections: bool,
    end_tokens: bool,
    forget_tokens: bool,
    detach: Option<DetachRequest>,
}

/// Busy for a number of answers or for a time, for the named operations, or for all when none is named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BusyRequest {
    #[serde(default)]
    answers: u64,
    #[serde(default)]
    ms: u64,
    #[serde(default)]
    of: Vec<BusyOperation>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DetachRequest {
    #[serde(default)]
    address: String,
    condition: String,
    #[serde(default)]
    description: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdvanceRequest {
    advance_ms: u64,
}

/// The rules of the cloud to switch on. An omitted field changes nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudRequest {
    idle_link_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NamedKey {
    key_name: String,
    #[serde(default)]
    entity: String,
}

/// `POST` and `PUT` set faults, and `DELETE` ends all of them.
pub(super) fn faults(faults: &Faults, now_ms: i64, method: &Method, body: &[u8]) -> Answer {
    match *method {
        Method::POST | Method::PUT => {}
        Method::DELETE => {
            faults.clear();
            return response::empty(StatusCode::OK);
        }
        _ => return not_allowed(),
    }
    let wanted: FaultsRequest = match serde_json::from_slice(body) {
        Ok(wanted) => wanted,
        Err(error) => return malformed(&error),
    };
    if let Some(refuse) = wanted.refuse_connections {
        faults.refuse_connections(refuse);
    }
    if let Some(ms) = wanted.delay_ms {
        faults.delay_frames(Duration::from_millis(ms));
    }
    if let Some(frames) = wanted.drop_after_frames {
        faults.drop_after_frames(frames);
    }
    if let Some(count) = wanted.lose_settlements {
        faults.lose_settlements(count);
    }
    if let Some(count) = wanted.lose_answers {
        faults.lose_answers(count);
    }
    if let Some(count) = wanted.refuse_renewals {
        faults.refuse_renewals(count);
    }
    if let Some(count) = wanted.refuse_attaches {
        faults.refuse_attaches(count);
    }
    if let Some(BusyRequest { answers, ms, of }) = wanted.server_busy {
        match ms {
            0 => faults.be_busy(answers, &of),
            ms => faults.be_busy_until(now_ms.saturating_add_unsigned(ms), &of),
        }
    }
    if let Some(detach) = wanted.detach {
        faults.detach(&detach.address, &detach.condition, &detach.description);
    }
    if wanted.end_tokens {
        faults.end_tokens();
    }
    if wanted.forget_tokens {
        faults.forget_tokens();
    }
    if wanted.drop_connections {
        faults.drop_connections();
    }
    response::empty(StatusCode::OK)
}

/// `POST` and `PUT` switch rules of the cloud on and off. An omitted field changes nothing.
pub(super) fn cloud(cloud: &CloudRules, faults: &Faults, method: &Method, body: &[u8]) -> Answer {
    if !matches!(*method, Method::POST | Method::PUT) {
        return not_allowed();
    }
    let wanted: CloudRequest = match serde_json::from_slice(body) {
        Ok(wanted) => wanted,
        Err(error) => return malformed(&error),
    };
    if let Some(ms) = wanted.idle_link_ms {
        cloud.detach_idle_links(Duration::from_millis(ms));
        faults.look_again();
    }
    response::empty(StatusCode::OK)
}

/// `POST` and `PUT` add keys and replace those of the same name; `DELETE` removes the named ones.
pub(super) fn keys(keys: &KeySet, method: &Method, body: &[u8]) -> Answer {
    match *method {
        Method::POST | Method::PUT => match AccessRule::parse(body) {
            Ok(rules) => rules.into_iter().for_each(|rule| rule.put(keys)),
            Err(why) => {
                return response::failed(StatusCode::BAD_REQUEST, &format!("The request body cannot be read: {why}."));
            }
        },
        Method::DELETE => match serde_json::from_slice::<NamedKey>(body) {
            Ok(named) => keys.remove(&named.key_name, &named.entity),
            Err(error) => return malformed(&error),
        },
        _ => return not_allowed(),
    }
    response::empty(StatusCode::OK)
}

/// `GET` returns the time. `POST` and `PUT` move it and return it after everything that became due has been done.
pub(super) fn clock(clock: &Clock, method: &Method, body: &[u8]) -> Answer {
    match *method {
        Method::GET => {}
        Method::POST | Method::PUT => match serde_json::from_slice(body) {
            Ok(AdvanceRequest { advance_ms }) if advance_ms <= MAX_ADVANCE_MS => {
                clock.advance(Duration::from_millis(advance_ms));
            }
            Ok(_) => return response::failed(StatusCode::BAD_REQUEST, "advance_ms is more than a hundred years."),
            Err(error) => return malformed(&error),
        },
        _ => return not_allowed(),
    }
    response::json(&json!({ "now_ms": clock.now_ms() }))
}

fn malformed(error: &serde_json::Error) -> Answer {
    response::failed(StatusCode::BAD_REQUEST, &format!("The request body cannot be read: {error}."))
}

fn not_allowed() -> Answer {
    response::failed(StatusCode::METHOD_NOT_ALLOWED, "This method is not known here.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::{FaultOrder, SettleLoss};

    #[test]
    fn faults_are_set_and_ended() {
        let switches = Faults::default();
        let mut orders = switches.orders();
        let body =
            br#"{"refuse_connections":true,"delay_ms":5,"drop_after_frames":1,"lose_settlements":1,"lose_answers":1,"refuse_renewals":1,"refuse_attaches":1,
            "drop_connections":true,"detach":{"address":"q","condition":"c","description":"d"}}"#;
        assert_eq!(faults(&switches, 0, &Method::POST, body).status(), StatusCode::OK);
        assert!(switches.refuses());
        assert_eq!(switches.delay(), Duration::from_millis(5));
        assert_eq!(
            [switches.next_loss(), switches.next_loss(), switches.next_loss()],
            [SettleLoss::Request, SettleLoss::Answer, SettleLoss::None]
        );
        let detach = FaultOrder::Detach { address: "q".into(), condition: "c".into(), description: "d".into() };
        assert_eq!([orders.try_recv(), orders.try_recv()], [Ok(detach), Ok(FaultOrder::DropConnections)]);
        assert!(switches.check_renewal().is_err() && switches.check_attach().is_err());
        assert!(switches.drops_at_frame());
        // What is not named stays.
        assert_eq!(faults(&switches, 0, &Method::PUT, br#"{"delay_ms":0}"#).status(), StatusCode::OK);
        assert!(switches.refuses() && switches.delay().is_zero());
        assert_eq!(faults(&switches, 0, &Method::DELETE, b"").status(), StatusCode::OK);
        assert!(!switches.refuses());
    }

    #[test]
    fn the_clock_moves() {
        let time = Clock::manual(1000);
        assert_eq!(clock(&time, &Method::POST, br#"{"advance_ms":500}"#).status(), StatusCode::OK);
        assert_eq!(time.now_ms(), 1500);
        assert_eq!(clock(&time, &Method::GET, b"").status(), StatusCode::OK);
    }

    #[test]
    fn mistakes_are_told() {
        for body in ["", "1", "{\"typo\":1}", "{\"delay_ms\":-1}", "{\"detach\":{}}"] {
            assert_eq!(
                faults(&Faults::default(), 0, &Method::POST, body.as_bytes()).status(),
                StatusCode::BAD_REQUEST,
                "{body}"
            );
        }
        for body in ["{}", "{\"advance_ms\":-1}", "{\"advance_ms\":18446744073709551615}"] {
            assert_eq!(
                clock(&Clock::manual(0), &Method::POST, body.as_bytes()).status(),
                StatusCode::BAD_REQUEST,
                "{body}"
            );
        }
        assert_eq!(clock(&Clock::manual(0), &Method::DELETE, b"").status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(faults(&Faults::default(), 0, &Method::GET, b"").status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
