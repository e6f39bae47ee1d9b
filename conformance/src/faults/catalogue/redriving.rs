//! Faults of going through dead letters, with the scenarios that notice them.

use std::sync::Arc;

use polybus_core::driver::Settlement;

use crate::faults::{
    Fault,
    behaviours::{
        receive::{MisreadsMessage, edit, wanted_type},
        redrive::{
            CostsNeighbours, DeduplicatesCopies, EditsWrongly, HidesBehindHeld, KnownById, LosesMark, TrustsClocks,
        },
        settle::SettlesOtherwise,
    },
};

pub(super) fn all() -> Vec<Fault> {
    faults! {
        "redrive-loses-mark", "a redriven message does not carry the mark, and nobody counts dead letters",
            ["redrive/poison-returns", "redrive/new-letters-meanwhile"],
            LosesMark;
        "redrive-uncounted", "dead letters do not tell how often they were redriven",
            ["redrive/again-and-again"],
            MisreadsMessage(|at, r| if let Some(told) = r.dead_letter.as_mut().filter(|_| at.is_dead()) { told.redriven = 0 });
        "redrive-known-by-id", "dead letters are known by the message's id",
            ["redrive/equal-ids"],
            KnownById;
        "redrive-deduplicated", "the second redriven copy of one id and source is dropped and called made",
            ["redrive/equal-ids", "redrive/equal-ids-again"],
            DeduplicatesCopies { sources_matter: true, ..DeduplicatesCopies::default() };
        "redrive-deduplicated-by-id", "the second redriven copy of one id is dropped and called made, whatever the sources",
            ["redrive/equal-ids", "redrive/equal-ids-ordered"],
            DeduplicatesCopies::default();
        "redrive-trusts-clocks", "letters that died later than now are kept back",
            ["redrive/clocks"],
            TrustsClocks;
        "redrive-hidden-behind-held", "a dead letter that is held hides the later ones of its key, and the driver does not say so",
            ["redrive/behind-a-kept-one"],
            HidesBehindHeld::default();
        "redrive-hides-expiry", "dead letters do not tell that they expire",
            ["redrive/expired"],
            MisreadsMessage(|at, r| if at.is_dead() { edit(r, |p| p.expires_at = None) });
        "redrive-hides-types", "dead letters look like what the filter wants",
            ["redrive/unwanted-type"],
            MisreadsMessage(|at, r| if at.is_dead() { wanted_type(at, r) });
        "redrive-costs-neighbours", "a redriven message that is too large costs those that go with it",
            ["redrive/too-large"],
            CostsNeighbours::default();
        "drop-redrives", "a dead letter that is dropped goes back instead",
            ["redrive/verdicts"],
            SettlesOtherwise(|at, s| (at.is_dead() && s.how == Settlement::Ack).then_some(Settlement::Redrive));
        "keep-drops", "dead letters that are kept are removed in the end",
            ["redrive/stop", "redrive/verdicts"],
            SettlesOtherwise(|at, s| (at.is_dead() && s.how == Settlement::GiveBack).then_some(Settlement::Ack));
        "edit-sends-both", "an edited dead letter goes back as it was, as well",
            ["redrive/edited", "redrive/edited-siblings"],
            EditsWrongly::Both;
        "edit-ignored", "an edited dead letter goes back as it was",
            ["redrive/edited", "redrive/edited-key", "redrive/edited-siblings", "redrive/verdicts"],
            EditsWrongly::Ignored;
        "edit-keeps-id", "an edited dead letter goes back under its old id",
            ["redrive/edited"],
            EditsWrongly::OldId;
        "edit-keeps-key", "an edited dead letter goes back under its old key",
            ["redrive/edited-key"],
            EditsWrongly::OldKey;
        "edit-published", "an edited dead letter is published to the topic again",
            ["redrive/edited-siblings"],
            EditsWrongly::Published;
    }
}
