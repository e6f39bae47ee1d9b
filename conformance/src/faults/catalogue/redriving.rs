//! Faults of going through dead letters, with the scenarios that notice them.

use std::sync::Arc;

use polybus_core::driver::Settlement;

use super::{
    Fault,
    on_receive::{Misread, edit, wanted_type},
    on_redrive::{CostsNeighbours, DeduplicatesCopies, Edits, HidesBehindHeld, KnownById, LosesMark, TrustsClocks},
    on_settle::Missettle,
};

pub(super) fn redriving() -> Vec<Fault> {
    faults! {
        "redrive-loses-mark", "a redriven message does not carry the mark, and nobody counts dead letters",
            ["dead_letters_hard/poison-returns", "sift/poison"],
            LosesMark;
        "redrive-uncounted", "dead letters do not tell how often they were redriven",
            ["dead_letters_hard/again-and-again"],
            Misread(|at, r| if let Some(told) = r.dead_letter.as_mut().filter(|_| at.is_dead()) { told.redriven = 0 });
        "redrive-known-by-id", "dead letters are known by the message's id",
            ["sift/equal-ids"],
            KnownById;
        "redrive-deduplicated", "the second redriven copy of one id and source is dropped and called made",
            ["sift/equal-ids", "sift/equal-ids-again"],
            DeduplicatesCopies { sources_matter: true, ..DeduplicatesCopies::default() };
        "redrive-deduplicated-by-id", "the second redriven copy of one id is dropped and called made, whatever the sources",
            ["sift/equal-ids", "sift/equal-ids-ordered"],
            DeduplicatesCopies::default();
        "redrive-trusts-clocks", "letters that died later than now are kept back",
            ["sift/clocks"],
            TrustsClocks;
        "redrive-hidden-behind-held", "a dead letter that is held hides the later ones of its key, and the driver does not say so",
            ["sift/behind-a-kept-one"],
            HidesBehindHeld::default();
        "redrive-hides-expiry", "dead letters do not tell that they expire",
            ["sift/expired"],
            Misread(|at, r| if at.is_dead() { edit(r, |p| p.expires_at = None) });
        "redrive-hides-types", "dead letters look like what the filter wants",
            ["sift/unwanted-type"],
            Misread(|at, r| if at.is_dead() { wanted_type(at, r) });
        "redrive-costs-neighbours", "a redriven message that is too large costs those that go with it",
            ["sift/too-large"],
            CostsNeighbours::default();
        "drop-redrives", "a dead letter that is dropped goes back instead",
            ["sift/verdicts"],
            Missettle(|at, s| (at.is_dead() && s.how == Settlement::Ack).then_some(Settlement::Redrive));
        "keep-drops", "dead letters that are kept are removed in the end",
            ["sift/stop", "sift/verdicts"],
            Missettle(|at, s| (at.is_dead() && s.how == Settlement::GiveBack).then_some(Settlement::Ack));
        "edit-sends-both", "an edited dead letter goes back as it was, as well",
            ["sift/edited", "sift/edited-siblings"],
            Edits::Both;
        "edit-ignored", "an edited dead letter goes back as it was",
            ["sift/edited", "sift/edited-key", "sift/edited-siblings", "sift/verdicts"],
            Edits::Ignored;
        "edit-keeps-id", "an edited dead letter goes back under its old id",
            ["sift/edited"],
            Edits::OldId;
        "edit-keeps-key", "an edited dead letter goes back under its old key",
            ["sift/edited-key"],
            Edits::OldKey;
        "edit-published", "an edited dead letter is published to the topic again",
            ["sift/edited-siblings"],
            Edits::Published;
    }
}
