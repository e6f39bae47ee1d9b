//! Faults that only messages, entities and programs of others show, with the scenarios that notice them.

use std::sync::Arc;

use polybus_core::{Envelope, Headers, driver::Settlement};

use crate::faults::{
    Fault,
    behaviours::{
        receive::{MisreadsMessage, edit},
        settle::{RepublishesCopy, SettlesOtherwise},
        strangers::{AcksLater, CopiesById, ObeysHeader},
    },
};

fn is_retry(how: &Settlement) -> bool {
    matches!(how, Settlement::RetryAfter(_))
}

pub(super) fn all() -> Vec<Fault> {
    faults! {
        "copies-by-id", "a copy is dropped where one with the same id was made before",
            ["strangers/same-ids", "strangers/ids-of-two-sources"],
            CopiesById::default();
        "retry-lives-for-ever", "a retried message forgets how long it lives",
            ["strangers/own-ttl"],
            RepublishesCopy { when: is_retry, edit: |p| p.expires_at = None, then: Settlement::Ack };
        "copy-loses-what-others-set", "a message that comes again has lost what its producer set",
            ["strangers/shown", "strangers/every-fate"],
            MisreadsMessage(|_, r| if r.attempt > 1 || r.dead_letter.is_some() {
                edit(r, |p| {
                    (p.correlation_id, p.subject) = (None, None);
                    p.headers = Headers::new();
                });
            });
        "bytes-vanish", "a header that is no text vanishes without a word",
            ["strangers/unshown-is-named"],
            MisreadsMessage(|_, r| edit(r, |p| drop(p.headers.remove("native.unshown"))));
        "events-of-others-unread", "the events of other libraries are taken for no events",
            ["strangers/four-prefixes", "strangers/odd-times", "strangers/structured-by-look"],
            MisreadsMessage(|_, r| if &*r.envelope.source == "/others" { edit(r, |p| p.event_type = Envelope::FOREIGN_TYPE.into()) });
        "groups-mixed", "a released message of a group comes after its successors",
            ["strangers/own-groups"],
            RepublishesCopy { when: |how| *how == Settlement::Release, edit: |_| {}, then: Settlement::Ack };
        "release-loses-strangers", "what a consumer with the wrong settings releases is gone",
            ["strangers/sessions-unknown"],
            SettlesOtherwise(|at, s| (!at.from.settings.ordered && s.how == Settlement::Release).then_some(Settlement::Ack));
        "limit-loses", "a message over its limit is removed",
            ["strangers/two-limits", "strangers/clocks-and-expiry", "strangers/clocks-and-dead-letters"],
            SettlesOtherwise(|_, s| matches!(s.how, Settlement::DeadLetter { .. }).then_some(Settlement::Ack));
        "retry-by-another-clock", "a retry is given the time of another clock",
            ["strangers/clocks-and-delays"],
            SettlesOtherwise(|_, s| is_retry(&s.how).then_some(Settlement::RetryAfter(std::time::Duration::from_secs(300))));
        "ack-not-awaited", "an ack is answered before it is carried out",
            ["settle/ok-means-done"],
            AcksLater;
        "obeys-headers", "headers of the application are taken for instructions",
            ["data/instructions"],
            ObeysHeader;
        "acks-forgotten-in-trouble", "what was acked around an outage comes again",
            ["strangers/refused-for-a-while"],
            SettlesOtherwise(|_, s| (s.how == Settlement::Ack).then_some(Settlement::Release));
        "own-routing-lost", "a message routed by another's key is not put back by a redrive",
            ["strangers/own-routing"],
            SettlesOtherwise(|_, s| (&*s.envelope.event_type == Envelope::FOREIGN_TYPE && s.how == Settlement::Redrive)
                .then_some(Settlement::Ack));
        "close-in-trouble-loses", "the end of a consumer whose settlements failed removes what it held",
            ["lifecycle/close-while-settling"],
            crate::faults::behaviours::settle::AtClose::Loses;
    }
}
